"""Which pairs we train on: a task turns windows of item ids into training rows, vectorised."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pixelrec_jax.errors import UserError


class Rows(NamedTuple):
    """Training rows in item ids: history [B, L], positive [B, T], negative [B, T, K], weight."""

    history: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    weight: np.ndarray


Task = Callable[..., Rows]  # (windows, rng, *, num_items, negatives) -> Rows


def next_item(
    windows: np.ndarray, rng: np.random.Generator, *, num_items: int, negatives: int
) -> Rows:
    """Predicts at every position of a window the item that follows (SASRec section III).

    Args:
      windows: int32[B, L + 1], left-padded with 0.
      rng: source of the negatives.
      num_items: N, catalogue size with the padding item.
      negatives: K, negatives drawn for each target.
    """
    history, positive = windows[:, :-1], windows[:, 1:]
    weight = history > 0
    negative = sample_negatives(
        rng, (*positive.shape, negatives), exclude=windows, num_items=num_items
    )
    negative = np.where(weight[..., None], negative, 0)
    return Rows(history, np.where(weight, positive, 0), negative, weight.astype(np.float32))


def sample_negatives(
    rng: np.random.Generator, shape: tuple[int, ...], *, exclude: np.ndarray, num_items: int
) -> np.ndarray:
    """Returns int32[B, ...] ids, uniform over 1..N-1 without row b's ids in `exclude[b]`.

    As in the reference, draws that hit the exclusion set are drawn again, items of the
    validation and test targets are allowed, and independent draws may repeat each other.

    Raises:
      UserError: the catalogue is so small that a row may have no negative at all.
    """
    if num_items - 1 <= exclude.shape[1]:
        raise UserError(
            f"the catalogue has {num_items - 1} items, but negatives are drawn outside windows of "
            f"{exclude.shape[1]} items; use a larger catalogue or a smaller task.history_length"
        )
    negative = rng.integers(1, num_items, size=shape, dtype=np.int32)
    row, *_ = np.indices(shape, sparse=True)
    flat, row = negative.reshape(-1), np.broadcast_to(row, shape).reshape(-1)
    pending = np.arange(flat.size)
    while True:
        taken = (flat[pending, None] == exclude[row[pending]]).any(axis=1)
        pending = pending[taken]
        if not pending.size:
            return flat.reshape(shape)
        flat[pending] = rng.integers(1, num_items, size=pending.size, dtype=np.int32)


TASKS: dict[str, Task] = {"next_item": next_item}
