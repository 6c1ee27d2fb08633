"""Tasks: a task numbers the training examples of a dataset and makes rows of item ids of them.

Everything is vectorised; a task is pickled to worker processes and called from several threads.
"""

from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.data.rows import Rows, rows_of_one_target
from pixelrec_jax.data.split import Split
from pixelrec_jax.data.windows import (
    Windows,
    left_padded,
    read_items,
    training_windows,
    window_events,
)
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.system.options import Number, Option


class Task(Protocol):
    """The training examples 0 .. len - 1 of a dataset.

    Attributes:
      split: the split that the examples are made of.
      uses_mask_item: whether histories hold the mask item; see `data.mask_item`.
      time_unit: the unit of `Batch.time`, a key of `data.time_units.UNITS`.
      options: the keys of `config.task` that this task takes and others do not.
    """

    split: Split
    uses_mask_item: ClassVar[bool]
    time_unit: ClassVar[str]
    options: ClassVar[dict[str, Option]]

    @property
    def rows_per_example(self) -> int:
        """R, the number of rows that an example makes; some may be padding."""
        ...

    @property
    def most_excluded(self) -> int:
        """S, the size of the largest exclusion set."""
        ...

    def __init__(self, split: Split, **options: Any) -> None: ...

    def __len__(self) -> int: ...

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns the rows of b examples (int[b]), B = b * R; `rng` is the only randomness."""


_HELD_OUT = (
    "leave_one_out holds out the last two of every user, global_time those from valid_from on"
)


class _Task:
    """The base of all tasks here: one row an example, times in seconds, no mask item or options."""

    rows_per_example = 1
    uses_mask_item: ClassVar[bool] = False
    time_unit: ClassVar[str] = "seconds"
    options: ClassVar[dict[str, Option]] = {}

    def __getstate__(self) -> dict:
        # Workers compute the cached properties themselves: at full size these are very large.
        computed = {n for n in vars(self) if isinstance(getattr(type(self), n, 0), cached_property)}
        return {name: value for name, value in vars(self).items() if name not in computed}


class _WindowTask(_Task):
    """The base of tasks over windows of L + 1 training interactions.

    As in the reference, the items of a window are not negatives of its rows.
    """

    def __init__(self, split: Split, *, history_length: int):
        """Builds the task on the windows of a split; `history_length` is L.

        Raises:
          UserError: nothing can be learned from the dataset.
        """
        self.split, self.size = split, history_length + 1
        if not np.any(self.windows.length > 1):
            raise UserError(
                "no user has two training interactions or more, so that there is nothing to learn "
                f"from; {_HELD_OUT}"
            )

    @property
    def most_excluded(self) -> int:
        """L + 1, the size of a window."""
        return self.size

    @cached_property
    def windows(self) -> Windows:
        """All training windows."""
        return training_windows(self.split, size=self.size)

    def __len__(self) -> int:
        return len(self.windows)

    def _read(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the items int32[b, L + 1] and the events int64[b, L + 1] of windows."""
        event = window_events(self.windows, chosen, size=self.size)
        return read_items(self.split.interactions, event), event


class NextItem(_WindowTask):
    """Predicts the next item at every position of a window (SASRec section III)."""

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with T = L targets."""
        window, event = self._read(chosen)
        history, positive = window[:, :-1], window[:, 1:]
        real = history > 0
        return Rows(
            user=self.windows.user[chosen],
            history=history,
            positive=np.where(real, positive, 0),
            weight=real.astype(np.float32),
            exclude=window,
            event=event[:, :-1],
        )


class Prefixes(_WindowTask):
    """Predicts the last item of every prefix of a window from the items before it (SRGNN)."""

    @cached_property
    def _first_example(self) -> np.ndarray:
        return _first_of_each(np.maximum(self.windows.length - 1, 0))

    def __len__(self) -> int:
        return int(self._first_example[-1])

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with T = 1; the exclusion set is the prefix and its target."""
        number, place = _locate(chosen, self._first_example)
        event = left_padded(self.windows.start[number], place + 2, self.size)
        prefix = read_items(self.split.interactions, event)
        return rows_of_one_target(
            self.windows.user[number],
            history=prefix[:, :-1],
            positive=prefix[:, -1],
            exclude=prefix,
            event=event[:, :-1],
        )


class RestOfWindow(_WindowTask):
    """Predicts every item of a window from all its other items, earlier and later (DSSM, FM).

    An example is a window and makes L + 1 rows, so that its items are encoded once.
    """

    @property
    def rows_per_example(self) -> int:
        """L + 1."""
        return self.size

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with T = 1, in the order of the window's positions."""
        window, event = self._read(chosen)
        # The other positions, oldest first: the ones before the target move one to the right.
        column = np.arange(1, self.size)
        others = column - (column <= np.arange(self.size)[:, None])
        return rows_of_one_target(
            np.repeat(self.windows.user[chosen], self.size),
            history=window[:, others].reshape(-1, self.size - 1),
            positive=window.reshape(-1),
            exclude=np.repeat(window, self.size, axis=0),
            event=event[:, others].reshape(-1, self.size - 1),
        )


class Cloze(_WindowTask):
    """Predicts the masked items of a window from the others (BERT4Rec section 3.6).

    The mask item replaces masked items. As in the reference, items are masked independently, so
    that a window may have none.
    """

    uses_mask_item: ClassVar[bool] = True
    options: ClassVar[dict[str, Option]] = {
        "mask_ratio": Option("probability that an item is masked", Number(above=0, below=1)),
    }

    def __init__(self, split: Split, *, history_length: int, mask_ratio: float):
        """Builds the task; `mask_ratio` is the probability that an item is masked."""
        super().__init__(split, history_length=history_length)
        self.mask_ratio = mask_ratio

    def rows(self, chosen: np.ndarray, rng: np.random.Generator) -> Rows:
        """Returns rows with L + 1 history positions and T = L + 1 targets."""
        window, event = self._read(chosen)
        masked = (rng.random(window.shape) < self.mask_ratio) & (window > 0)
        return Rows(
            user=self.windows.user[chosen],
            history=np.where(masked, self.split.interactions.num_items, window),
            positive=np.where(masked, window, 0),
            weight=masked.astype(np.float32),
            exclude=window,
            event=event,
        )


class Pairs(_Task):
    """Ranks a user's items above others, whatever their order (BPR, Rendle et al. 2009).

    An example is a training interaction; the exclusion set is all training items of its user.
    """

    def __init__(self, split: Split, *, history_length: int):
        """Builds the task; histories are `history_length` long and empty: users have tables.

        Raises:
          UserError: nothing can be learned from the dataset.
        """
        self.split, self.history_length = split, history_length
        self.most_excluded = int(self._train_length.max(initial=0))
        if self.most_excluded == 0:
            raise UserError(f"there are no training interactions; {_HELD_OUT}")

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
        return rows_of_one_target(
            user.astype(np.int32),
            history=np.zeros((len(chosen), self.history_length), np.int32),
            positive=positive.astype(np.int32),
            exclude=interactions.items[row],
            event=np.full((len(chosen), self.history_length), -1),
        )


def _first_of_each(count: np.ndarray) -> np.ndarray:
    """Returns int64[len + 1]: the first of each group of `count` examples, and their total."""
    return np.concatenate([[0], np.cumsum(count)])


def _locate(chosen: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the group of each example and its position there; `first` is of `_first_of_each`."""
    group = np.searchsorted(first, chosen, side="right") - 1
    return group, chosen - first[group]


TASKS: dict[str, type[Task]] = {
    "next_item": NextItem,
    "prefixes": Prefixes,
    "rest_of_window": RestOfWindow,
    "cloze": Cloze,
    "pairs": Pairs,
}


def build_task(config: ConfigDict, split: Split) -> Task:
    """Returns the task that `config.task` describes, of the training data of a split.

    Raises:
      UserError: there is none of that name, or nothing to train on.
    """
    options = {key: value for key, value in config.task.items() if key != "name"}
    return task_of(config)(split, **options)


def task_of(config: ConfigDict) -> type[Task]:
    """Returns the task that a config names.

    Raises:
      UserError: the name is unknown.
    """
    name = config.task.name
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]
