"""Ranking queries of a split, vectorised over users."""

import numpy as np
from flax import struct

from pixelrec_jax.data.split import Holdout, Split
from pixelrec_jax.data.time_offsets import TimeOffsets
from pixelrec_jax.data.types import Array
from pixelrec_jax.data.windows import left_padded, read_items


class Queries(struct.PyTreeNode):
    """Users to rank the catalogue for.

    Attributes:
      user: int32[Q], user indices.
      history: int32[Q, L], the last items before the target, left-padded with 0.
      seen: int32[Q, S], all items before the target, right-padded with 0.
      target: int32[Q], the item to predict.
      time: int32[Q, L], as in `data.types.History`; None unless asked for.
    """

    user: Array
    history: Array
    seen: Array
    target: Array
    time: Array | None = None


def ranking_queries(
    split: Split,
    users: np.ndarray,
    holdout: Holdout,
    *,
    history_length: int,
    time_unit: str | None = None,
) -> Queries:
    """Returns the queries of users int[Q] of `Split.users`; with times if a unit is given.

    Raises:
      UserError: the dataset does not have times in this unit.
    """
    interactions = split.interactions
    start, target_event = interactions.offsets[users], split.targets[holdout][users]
    seen_length = target_event - start
    length = np.minimum(seen_length, history_length)
    event = left_padded(target_event - length, length, history_length)
    # Seen lists are padded to a power of two so that only a few shapes are ever compiled.
    longest = 1 << int(np.max(seen_length, initial=1) - 1).bit_length()
    column = np.arange(longest)
    valid = column < seen_length[:, None]
    seen = interactions.items[np.where(valid, start[:, None] + column, 0)]
    return Queries(
        user=users.astype(np.int32),
        history=read_items(interactions, event),
        seen=np.where(valid, seen, 0).astype(np.int32),
        target=np.asarray(interactions.items[target_event], np.int32),
        time=None if time_unit is None else TimeOffsets(interactions, time_unit).of(event),
    )
