"""The users of PixelRec as TFDS examples: the history of each user, in order of time.

The order is by timestamp, then by position in the file, on one machine and on many.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pixelrec_jax.ingest.columns import write_columns
from pixelrec_jax.ingest.interactions_file import read_interactions
from pixelrec_jax.ingest.tfds import pieces
from pixelrec_jax.ingest.timestamps import INTEGERS
from pixelrec_jax.system.arrays import map_array
from pixelrec_jax.system.errors import UserError

_USERS_AT_ONCE = 10_000
# The interactions of a user in one piece of the file: its first byte, item ids, timestamps.
Fragment = tuple[int, list[str], list[int]]


def examples(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the key and example of every user of a CSV.

    Sorted columns (12 bytes an interaction) are memory-mapped from a temporary folder, so that this
    takes no more memory than `read_interactions`. Raises `UserError` as `pieces.read`.
    """
    table, times = read_interactions(Path(path))
    if times.form != INTEGERS:
        raise UserError(f"{path!r} has timestamps that are {times.form}; write integers")
    item_ids, user_ids = table.item_ids, table.user_ids
    with tempfile.TemporaryDirectory() as columns:
        write_columns(table, Path(columns))
        del table
        offsets, items, timestamps = (
            map_array(Path(columns) / f"{name}.npy") for name in ("offsets", "items", "timestamps")
        )
        for first in range(0, len(user_ids), _USERS_AT_ONCE):
            users = user_ids[first : first + _USERS_AT_ONCE]
            bounds = offsets[first + 1 : first + len(users) + 2]  # user 0 is padding
            start = int(bounds[0])
            names = item_ids.gather(items[start : bounds[-1]] - 1)
            for user_id, (low, high) in zip(users, itertools.pairwise(bounds), strict=True):
                history = names[int(low) - start : int(high) - start].to_list()
                yield _example(user_id, history, timestamps[low:high])


def _example(user_id: str, item_ids: list[str], timestamps: Any) -> tuple[str, dict[str, Any]]:
    return user_id, {
        "user_id": user_id,
        "item_ids": item_ids,
        "timestamps": np.asarray(timestamps, np.int64),
    }


def fragments(start: int, *, path: str, size: int = pieces.SIZE) -> Iterator[tuple[str, Fragment]]:
    """Yields (user id, fragment of the history) of a piece of a CSV; raises as `pieces.read`."""
    table = pieces.read(start, path=path, size=size)
    users = table.group_by("user_id", maintain_order=True).agg("item_id", "timestamp")
    for user_id, item_ids, timestamps in users.iter_rows():
        yield user_id, (start, item_ids, timestamps)


def merge(user_id: str, history: Iterable[Fragment]) -> tuple[str, dict[str, Any]]:
    """Returns the key and example of one user from the fragments of the history, in any order."""
    ordered = sorted(history)
    items = [item for _, item_ids, _ in ordered for item in item_ids]
    times = np.concatenate([times for _, _, times in ordered])
    order = np.argsort(times, kind="stable")
    return _example(user_id, [items[index] for index in order], times[order])
