"""Training windows and ranking queries of a split, vectorised over users."""

from dataclasses import dataclass

import numpy as np
from flax import struct

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.split import Part, Split


@dataclass(frozen=True)
class Windows:
    """Runs of consecutive training interactions.

    Attributes:
      user: int32[W], the user each window belongs to.
      start: int64[W], its first row in the interaction columns.
      length: int32[W], number of interactions in it, at most the window size.
    """

    user: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def training_windows(split: Split, *, size: int) -> Windows:
    """Cuts each user's training interactions into windows as the reference does.

    At most `size` interactions make one window. A longer sequence loses its oldest
    (length mod size) interactions; the rest is cut into consecutive windows of exactly `size`.
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


def read_windows(interactions: Interactions, windows: Windows, rows: np.ndarray, *, size: int):
    """Returns int32[len(rows), size]: the item ids of these windows, left-padded with 0."""
    return _read_left_padded(interactions, windows.start[rows], windows.length[rows], size)


@struct.dataclass
class Queries:
    """Users to rank the catalogue for.

    Attributes:
      user: int32[Q]; history: int32[Q, L], their last items before the target, left-padded;
      seen: int32[Q, S], every item before the target, right-padded with 0; target: int32[Q].
    """

    user: np.ndarray
    history: np.ndarray
    seen: np.ndarray
    target: np.ndarray


def ranking_queries(split: Split, users: np.ndarray, part: Part, *, history_length: int) -> Queries:
    """Returns the queries of these users (int[Q], of `Split.users`)."""
    interactions = split.interactions
    start, target_row = interactions.offsets[users], split.targets[part][users]
    seen_length = target_row - start
    history = np.minimum(seen_length, history_length)
    # Seen lists are padded to a power of two so that only a few shapes are ever compiled.
    longest = 1 << int(np.max(seen_length, initial=1) - 1).bit_length()
    column = np.arange(longest)
    valid = column < seen_length[:, None]
    seen = interactions.items[np.where(valid, start[:, None] + column, 0)]
    return Queries(
        user=users.astype(np.int32),
        history=_read_left_padded(interactions, target_row - history, history, history_length),
        seen=np.where(valid, seen, 0).astype(np.int32),
        target=np.asarray(interactions.items[target_row], np.int32),
    )


def _read_left_padded(interactions: Interactions, start, length, size: int) -> np.ndarray:
    column = np.arange(size) - (size - length[:, None])
    row = np.where(column >= 0, start[:, None] + column, 0)
    return np.where(column >= 0, interactions.items[row], 0).astype(np.int32)
