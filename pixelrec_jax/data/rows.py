"""Training rows in item ids, which tasks make and batches are assembled from."""

from typing import NamedTuple

import numpy as np


class Rows(NamedTuple):
    """Training rows in item ids.

    user int32[B], history int32[B, L], positive int32[B, T] and weight float32[B, T] are those of
    `data.types.Batch`; exclude int32[B, S] has the items that are not a negative of any target of
    the row, 0 and repeats among them; event int64[B, L] the row of the interaction columns that
    each place of a history stands for, -1 at padding.
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
    """Returns rows with T = 1; a row without a target is padding."""
    real = positive > 0
    return Rows(
        user=np.where(real, user, 0),
        history=np.where(real[:, None], history, 0),
        positive=positive[:, None],
        weight=real[:, None].astype(np.float32),
        exclude=exclude,
        event=np.where(real[:, None], event, -1),
    )
