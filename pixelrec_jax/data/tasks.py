"""Which pairs we train on: a task numbers its training examples and makes rows of item ids of them.

Everything is vectorised; a task is pickled to worker processes and called from several threads.
"""

from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.split import Windows, read_windows, training_windows
from pixelrec_jax.errors import UserError


class Rows(NamedTuple):
    """Training rows in item ids.

    user int32[B], history int32[B, L], positive int32[B, T], negative int32[B, T, K] and weight
    float32[B, T], as in `data.types.Batch`.
    """

    user: np.ndarray
    history: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    weight: np.ndarray


class Task(Protocol):
    """The training examples 0 .. len - 1 of a dataset."""

    def __len__(self) -> int: ...

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns the rows of these examples (int[B]); `rng` is the source of all randomness."""


class NextItem:
    """Predicts at every position of a window the item that follows (SASRec section III).

    An example is a window of L + 1 training interactions; as in the reference, a negative may be
    any item outside its window.
    """

    def __init__(self, interactions: Interactions, *, history_length: int, negatives: int):
        """Args: `history_length` is L and `negatives` is K.

        Raises:
          UserError: nothing can be learned from the dataset.
        """
        self.interactions, self.negatives = interactions, negatives
        self.size = history_length + 1
        if interactions.num_items - 1 <= self.size:
            raise UserError(
                f"the catalogue has {interactions.num_items - 1} items, but negatives are drawn "
                f"outside windows of {self.size} items; use a larger catalogue or a smaller "
                "task.history_length"
            )
        if not np.any(self.windows.length > 1):
            raise UserError(
                "no user has four interactions or more, so that there is nothing to learn from: "
                "the last two are the validation and the test target"
            )

    @cached_property
    def windows(self) -> Windows:
        """All training windows."""
        return training_windows(self.interactions, size=self.size)

    def __getstate__(self) -> dict:
        # Worker processes build the windows themselves: at full size they are very large.
        return {name: value for name, value in vars(self).items() if name != "windows"}

    def __len__(self) -> int:
        return len(self.windows)

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with T = L targets."""
        window = read_windows(self.interactions, self.windows, chosen, size=self.size)
        history, positive = window[:, :-1], window[:, 1:]
        real = history > 0
        shape = (*positive.shape, self.negatives)
        negative = sample_negatives(
            rng, shape, exclude=window, num_items=self.interactions.num_items
        )
        return Rows(
            user=self.windows.user[chosen],
            history=history,
            positive=np.where(real, positive, 0),
            negative=np.where(real[..., None], negative, 0),
            weight=real.astype(np.float32),
        )


def sample_negatives(
    rng: np.random.Generator, shape: tuple[int, ...], *, exclude: np.ndarray, num_items: int
) -> np.ndarray:
    """Returns int32[B, ...] ids, uniform over 1..N-1 without row b's ids in `exclude[b]`.

    As in the reference, draws that hit the exclusion set are drawn again, items of the
    validation and test targets are allowed, and independent draws may repeat each other. The
    catalogue must be larger than any exclusion set.
    """
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


TASKS: dict[str, type[Task]] = {"next_item": NextItem}
