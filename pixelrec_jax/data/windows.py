"""Training windows of a split, vectorised over users."""

from dataclasses import dataclass

import numpy as np

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.split import Split


@dataclass(frozen=True)
class Windows:
    """Windows: each one is consecutive training interactions of a user.

    Attributes:
      user: int32[W], the user of each window.
      start: int64[W], the index of its first interaction.
      length: int32[W], the number of its interactions, at most the window size.
    """

    user: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def training_windows(split: Split, *, size: int) -> Windows:
    """Cuts each user's training interactions into windows as the reference does.

    A sequence of at most `size` interactions is one window. A longer one loses its oldest
    (length mod size) interactions and is cut into consecutive windows of exactly `size`.
    """
    offsets = np.asarray(split.interactions.offsets)
    train_length = split.train_length
    short = train_length <= size
    count = np.where(short, np.minimum(train_length, 1), train_length // size)
    dropped = np.where(short, 0, train_length % size)
    user = np.repeat(np.arange(len(count)), count)
    nth = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    return Windows(
        user=user.astype(np.int32),
        start=offsets[user] + dropped[user] + nth * size,
        length=np.where(short, train_length, size)[user].astype(np.int32),
    )


def window_events(windows: Windows, chosen: np.ndarray, *, size: int) -> np.ndarray:
    """Returns int64[n, size]: the events of the windows int[n], as `left_padded` does."""
    return left_padded(windows.start[chosen], windows.length[chosen], size)


def left_padded(start: np.ndarray, length: np.ndarray, size: int) -> np.ndarray:
    """Returns int64[n, size]: start, start + 1, ... (`length` of them), with -1 before them.

    `start` and `length` are int[n]; the indices are those of interactions.
    """
    column = np.arange(size) - (size - length[:, None])
    return np.where(column >= 0, start[:, None] + column, -1)


def read_items(interactions: Interactions, event: np.ndarray) -> np.ndarray:
    """Returns the items of these interactions as int32 of the same shape; 0 where `event` is -1."""
    is_event = event >= 0
    return np.where(is_event, interactions.items[np.where(is_event, event, 0)], 0).astype(np.int32)
