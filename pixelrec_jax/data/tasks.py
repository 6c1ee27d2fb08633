"""Which pairs we train on: a task numbers its training examples and makes rows of item ids of them.

Everything is vectorised; a task is pickled to worker processes and called from several threads.
"""

from functools import cached_property
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.data.split import Split
from pixelrec_jax.data.windows import Windows, read_windows, training_windows
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.system.options import Number, Option


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
    """The training examples 0 .. len - 1 of a dataset.

    Attributes:
      rows_per_example: R; some rows of an example may be padding.
      masks: whether histories hold the mask item, whose id is N.
      options: what it takes from `config.task` beside what every task does.
    """

    rows_per_example: int
    masks: bool
    options: ClassVar[dict[str, Option]]

    def __len__(self) -> int: ...

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns the rows of b examples (int[b]), B = b * R; `rng` is the only randomness."""


_HELD_OUT = (
    "leave_one_out holds out the last two of every user, global_time those from valid_from on"
)


class _Task:
    """What most tasks have in common."""

    rows_per_example = 1
    masks = False
    options: ClassVar[dict[str, Option]] = {}

    def __getstate__(self) -> dict:
        # Worker processes compute these themselves: at full size they are very large.
        computed = {n for n in vars(self) if isinstance(getattr(type(self), n, 0), cached_property)}
        return {name: value for name, value in vars(self).items() if name not in computed}


class _WindowTask(_Task):
    """What tasks over windows of L + 1 training interactions share.

    As in the reference, a negative may be any item outside its window.
    """

    def __init__(self, split: Split, *, history_length: int, negatives: int):
        """Args: `history_length` is L and `negatives` is K.

        Raises:
          UserError: nothing can be learned from the dataset.
        """
        self.split, self.negatives = split, negatives
        self.size = history_length + 1
        num_items = split.interactions.num_items
        if num_items - 1 <= self.size:
            raise UserError(
                f"the catalogue has {num_items - 1} items, but negatives are drawn "
                f"outside windows of {self.size} items; use a larger catalogue or a smaller "
                "task.history_length"
            )
        if not np.any(self.windows.length > 1):
            raise UserError(
                "no user has two training interactions or more, so that there is nothing to learn "
                f"from; {_HELD_OUT}"
            )

    @cached_property
    def windows(self) -> Windows:
        """All training windows."""
        return training_windows(self.split, size=self.size)

    def __len__(self) -> int:
        return len(self.windows)

    def _read(self, windows: np.ndarray) -> np.ndarray:
        return read_windows(self.split.interactions, self.windows, windows, size=self.size)

    def _draw(
        self, rng: np.random.Generator, shape: tuple[int, ...], exclude: np.ndarray
    ) -> np.ndarray:
        shape, num_items = (*shape, self.negatives), self.split.interactions.num_items
        return sample_negatives(rng, shape, exclude=exclude, num_items=num_items)


class NextItem(_WindowTask):
    """Predicts at every position of a window the item that follows (SASRec section III)."""

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with T = L targets."""
        window = self._read(chosen)
        history, positive = window[:, :-1], window[:, 1:]
        real = history > 0
        negative = self._draw(rng, positive.shape, window)
        return Rows(
            user=self.windows.user[chosen],
            history=history,
            positive=np.where(real, positive, 0),
            negative=np.where(real[..., None], negative, 0),
            weight=real.astype(np.float32),
        )


class Prefixes(_WindowTask):
    """Predicts the last item of every prefix of a window from the items before it (SRGNN)."""

    @cached_property
    def _first_example(self) -> np.ndarray:
        return _first_of_each(np.maximum(self.windows.length - 1, 0))

    def __len__(self) -> int:
        return int(self._first_example[-1])

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with T = 1; negatives lie outside the prefix, its target included."""
        number, place = _locate(chosen, self._first_example)
        length = place + 2  # of the prefix
        window = self._read(number)
        # Left-padded windows end at the right: a prefix is a window moved to the right.
        shift = self.windows.length[number] - length
        column = np.arange(self.size) - shift[:, None]
        prefix = np.take_along_axis(window, np.maximum(column, 0), axis=1)
        prefix = np.where(column >= 0, prefix, 0)
        return _one_target(
            self.windows.user[number],
            history=prefix[:, :-1],
            positive=prefix[:, -1],
            negative=self._draw(rng, (len(chosen), 1), prefix),
        )


class RestOfWindow(_WindowTask):
    """Predicts every item of a window from all others of it, later ones too (DSSM, FM).

    An example is a window and makes L + 1 rows, so that its items are encoded once.
    """

    @property
    def rows_per_example(self) -> int:
        """L + 1."""
        return self.size

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with T = 1, in the order of the window's positions."""
        window = self._read(chosen)  # [b, L + 1]
        # The other positions, oldest first: those before the target move one to the right.
        column = np.arange(1, self.size)
        others = column - (column <= np.arange(self.size)[:, None])
        history = window[:, others].reshape(-1, self.size - 1)
        positive = window.reshape(-1)
        negative = self._draw(rng, (len(chosen), self.size), window)
        return _one_target(
            np.repeat(self.windows.user[chosen], self.size),
            history=history,
            positive=positive,
            negative=negative.reshape(-1, 1, self.negatives),
        )


class Cloze(_WindowTask):
    """Predicts the masked items of a window from the others (BERT4Rec section 3.6).

    As in the reference, items are masked independently, perhaps none of a window.
    """

    masks = True
    options: ClassVar[dict[str, Option]] = {
        "mask_ratio": Option("probability that an item is masked", Number(above=0, below=1)),
    }

    def __init__(
        self,
        split: Split,
        *,
        history_length: int,
        negatives: int,
        mask_ratio: float,
    ):
        """Args: `mask_ratio` is the probability that an item is masked."""
        super().__init__(split, history_length=history_length, negatives=negatives)
        self.mask_ratio = mask_ratio

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with a history of L + 1 and as many targets."""
        window = self._read(chosen)
        masked = (rng.random(window.shape) < self.mask_ratio) & (window > 0)
        negative = self._draw(rng, window.shape, window)
        return Rows(
            user=self.windows.user[chosen],
            history=np.where(masked, self.split.interactions.num_items, window),
            positive=np.where(masked, window, 0),
            negative=np.where(masked[..., None], negative, 0),
            weight=masked.astype(np.float32),
        )


class Pairs(_Task):
    """Tells a user's items from others, without order (BPR, Rendle et al. 2009).

    An example is a training interaction; a negative is no training item of the user.
    """

    def __init__(self, split: Split, *, history_length: int, negatives: int):
        """Args: histories of `history_length` are empty, as these models have users only."""
        self.split, self.negatives = split, negatives
        self.history_length = history_length
        longest = int(self._train_length.max(initial=0))
        if longest == 0:
            raise UserError(f"there are no training interactions; {_HELD_OUT}")
        if longest >= split.interactions.num_items - 1:
            raise UserError("a user has every item, so that there is nothing to tell them from")

    @cached_property
    def _train_length(self) -> np.ndarray:
        return self.split.train_length

    @cached_property
    def _first_example(self) -> np.ndarray:
        return _first_of_each(self._train_length)

    def __len__(self) -> int:
        return int(self._first_example[-1])

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with T = 1."""
        interactions = self.split.interactions
        user, place = _locate(chosen, self._first_example)
        start = np.asarray(interactions.offsets)[user]
        length = self._train_length[user]
        column = np.arange(length.max())
        row = np.where(column < length[:, None], start[:, None] + column, start[:, None])
        positive = interactions.items[start + place]
        shape = (len(chosen), 1, self.negatives)
        negative = sample_negatives(
            rng, shape, exclude=interactions.items[row], num_items=interactions.num_items
        )
        return _one_target(
            user.astype(np.int32),
            history=np.zeros((len(chosen), self.history_length), np.int32),
            positive=positive.astype(np.int32),
            negative=negative,
        )


def _first_of_each(count: np.ndarray) -> np.ndarray:
    """Returns int64[len + 1]: the first example of every group of `count` examples, and the end."""
    return np.concatenate([[0], np.cumsum(count)])


def _locate(chosen: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the group of each example and its place there, for the result of `_first_of_each`."""
    group = np.searchsorted(first, chosen, side="right") - 1
    return group, chosen - first[group]


def _one_target(
    user: np.ndarray, *, history: np.ndarray, positive: np.ndarray, negative: np.ndarray
) -> Rows:
    """Rows with T = 1; a row without a target is padding."""
    real = positive > 0
    return Rows(
        user=np.where(real, user, 0),
        history=np.where(real[:, None], history, 0),
        positive=positive[:, None],
        negative=np.where(real[:, None, None], negative, 0),
        weight=real[:, None].astype(np.float32),
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


TASKS: dict[str, type[Task]] = {
    "next_item": NextItem,
    "prefixes": Prefixes,
    "rest_of_window": RestOfWindow,
    "cloze": Cloze,
    "pairs": Pairs,
}


def task_of(config: ConfigDict) -> type[Task]:
    """Returns the task that a config names.

    Raises:
      UserError: there is none of that name.
    """
    name = config.task.name
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]
