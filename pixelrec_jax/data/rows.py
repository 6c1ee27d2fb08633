"""Rows of a batch in item ids: tasks make them, and batches are assembled from them."""

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Rows of a batch, in item ids.

    Attributes:
      user, history, positive, weight: int32[B], int32[B, L], int32[B, T] and float32[B, T], as in
        `data.types.Batch`.
      exclude: int32[B, S], the items that cannot be negatives in this row; it may hold 0 and
        repeats.
      event: int64[B, L], the interaction at each position of the history, as its index in the
        interaction columns; -1 at padding.
    """

    user: np.ndarray
    history: np.ndarray
    positive: np.ndarray
    weight: np.ndarray
    exclude: np.ndarray
    event: np.ndarray


def rows_of_one_target(
    user: np.ndarray,
    *,
    history: np.ndarray,
    positive: np.ndarray,
    exclude: np.ndarray,
    event: np.ndarray,
) -> Rows:
    """Returns rows with T = 1; a row without a target becomes padding."""
    real = positive > 0
    return Rows(
        user=np.where(real, user, 0),
        history=np.where(real[:, None], history, 0),
        positive=positive[:, None],
        weight=real[:, None].astype(np.float32),
        exclude=exclude,
        event=np.where(real[:, None], event, -1),
    )
