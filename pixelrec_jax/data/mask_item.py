"""The mask item, which stands in the place of items to predict: id N, after the catalogue's.

A task says with `uses_mask_item` whether there is one; only these functions know what follows.
"""

import numpy as np

from pixelrec_jax.data.queries import Queries
from pixelrec_jax.data.tasks import Task


def mask_item_of(task: type[Task], num_items: int) -> int | None:
    """Returns the id of a task's mask item, None if there is none; `num_items` is N."""
    return num_items if task.uses_mask_item else None


def num_ids(num_items: int, mask_item: int | None) -> int:
    """Returns how many ids items have, padding and mask item included; `num_items` is N."""
    return num_items if mask_item is None else mask_item + 1


def query_length(task: type[Task], history_length: int) -> int:
    """Returns the length of the histories that queries are made of, with `history_length` items."""
    return history_length + task.uses_mask_item


def with_mask_item(queries: Queries, mask_item: int | None) -> Queries:
    """Returns queries int32[Q, L + 1] that end with the mask item, in the place of the next item.

    Without a mask item they stay as they are.
    """
    if mask_item is None:
        return queries
    end = ((0, 0), (0, 1))
    time = queries.time
    return queries.replace(
        history=np.pad(queries.history, end, constant_values=mask_item),
        time=None if time is None else np.pad(time, end),
    )
