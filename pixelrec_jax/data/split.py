"""Splits: which interactions of each user are training data and which are targets.

Everything is vectorised over users: there may be tens of millions of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.system.errors import UserError, nearest

Holdout = Literal["valid", "test"]
LEAVE_ONE_OUT = {"name": "leave_one_out"}


@dataclass(frozen=True)
class Split:
    """The training data and the targets of all users.

    A user's first interactions are training data. Each holdout has at most one later interaction of
    a user as the target. A target is predicted from all earlier interactions of its user, and at
    least one exists. U is the number of users.

    Attributes:
      interactions: the interactions that are split.
      settings: the settings of the split, with times as timestamps; `build_split` makes the same
        split from them.
      train_stop: int64[U], the index after each user's last training interaction.
      targets: int64[U] by holdout, the index of each user's target, -1 for none.
    """

    interactions: Interactions
    settings: Mapping[str, Any]
    train_stop: np.ndarray
    targets: Mapping[Holdout, np.ndarray]

    def __reduce__(self):
        # Workers make the arrays themselves: at full size these are very large.
        return build_split, (self.interactions, self.settings)

    @property
    def train_length(self) -> np.ndarray:
        """int64[U]: how many training interactions each user has; user 0 is padding."""
        return self.train_stop - np.asarray(self.interactions.offsets)[:-1]

    @property
    def is_training(self) -> np.ndarray:
        """bool[interactions]: which interactions are training data."""
        train = self.train_length
        held_out = np.diff(np.asarray(self.interactions.offsets)) - train
        runs = np.stack([train, held_out], axis=1).reshape(-1)
        return np.repeat(np.tile([True, False], len(train)), runs)

    def users(self, holdout: Holdout) -> np.ndarray:
        """Returns int64[Q]: the users with a target, ascending."""
        return np.flatnonzero(self.targets[holdout] >= 0)


def leave_one_out(interactions: Interactions) -> Split:
    """Splits off a user's last interaction for test and the one before it for validation.

    All others are training data (PixelRec section 4.1).
    """
    offsets = np.asarray(interactions.offsets)
    start, stop = offsets[:-1], offsets[1:]
    return Split(
        interactions,
        LEAVE_ONE_OUT,
        train_stop=np.maximum(stop - 2, start),
        targets={
            "valid": np.where(stop - start > 2, stop - 2, -1),
            "test": np.where(stop - start > 1, stop - 1, -1),
        },
    )


def global_time(interactions: Interactions, *, valid_from: float, test_from: float) -> Split:
    """Splits at the same two times for all users, so that training data ends before any target.

    A user's validation target is the first interaction from `valid_from` on and before `test_from`,
    the test target the first one from `test_from` on. A user without an interaction before a target
    does not have that target.

    Args:
      interactions: the interactions to split.
      valid_from: a timestamp, or a fraction between 0 and 1: then the timestamp that this fraction
        of the interactions precedes. Slightly fewer may precede it, since interactions of equal
        time stay together.
      test_from: a timestamp or fraction, as `valid_from`.

    Raises:
      UserError: the times are not in order, or not within those of the interactions.
    """
    timestamps = np.asarray(interactions.timestamps)
    valid_from = _timestamp(timestamps, valid_from)
    test_from = _timestamp(timestamps, test_from)
    first, last = int(timestamps.min()), int(timestamps.max())
    if not first < valid_from < test_from <= last:
        raise UserError(
            f"dataset.split.valid_from is the time {valid_from}, test_from {test_from}; give "
            f"two times in this order, after the first interaction ({first}) and not after the "
            f"last ({last}), or fractions of the interactions, as 0.8 and 0.9"
        )
    offsets = np.asarray(interactions.offsets)
    start, stop = offsets[:-1], offsets[1:]
    valid = start + _count_before(timestamps, offsets, valid_from)
    test = start + _count_before(timestamps, offsets, test_from)
    return Split(
        interactions,
        {"name": "global_time", "valid_from": valid_from, "test_from": test_from},
        train_stop=valid,
        targets={
            "valid": np.where((valid > start) & (valid < test), valid, -1),
            "test": np.where((test > start) & (test < stop), test, -1),
        },
    )


# Each split by name: its function and the settings it takes.
SPLITS: dict[str, tuple[Callable[..., Split], tuple[str, ...]]] = {
    "leave_one_out": (leave_one_out, ()),
    "global_time": (global_time, ("valid_from", "test_from")),
}


def build_split(interactions: Interactions, settings: Mapping[str, Any]) -> Split:
    """Returns the split that `config.dataset.split` describes.

    Raises:
      UserError: the name is unknown, the split takes other settings, or nobody has a target.
    """
    name, options = settings["name"], {key: settings[key] for key in settings if key != "name"}
    if name not in SPLITS:
        raise UserError(f"unknown dataset.split.name={name!r}{nearest(name, SPLITS)}")
    make, expected = SPLITS[name]
    if set(options) != set(expected):
        raise UserError(
            f"dataset.split has the settings {', '.join(options) or 'none'}, but {name} takes "
            f"{', '.join(expected) or 'none'}; give the word split={name} in --config"
        )
    split = make(interactions, **options)
    for holdout in split.targets:
        if not len(split.users(holdout)):
            raise UserError(
                f"no user can be ranked in {holdout}: under dataset.split.name={name} nobody has a "
                "target and an interaction before it; give more interactions or other times"
            )
    return split


def _timestamp(timestamps: np.ndarray, time: float) -> int:
    if 0 < time < 1:
        place = int(time * len(timestamps))
        return int(np.partition(timestamps, place)[place])
    if time != int(time):
        raise UserError(
            f"dataset.split: {time} is not a time; give a timestamp, which is a whole number, or "
            "a fraction of the interactions between 0 and 1"
        )
    return int(time)


def _count_before(timestamps: np.ndarray, offsets: np.ndarray, time: int) -> np.ndarray:
    """Returns int64[U]: how many interactions of each user are before a time."""
    # One more entry, so that the offset of a last user without interactions is a valid index.
    before = np.append(timestamps < time, False)
    count = np.add.reduceat(before, offsets[:-1], dtype=np.int64)
    return np.where(np.diff(offsets) > 0, count, 0)  # reduceat of an empty range is one entry


def training_counts(split: Split) -> np.ndarray:
    """Returns int64[N]: how often each item occurs in the training data."""
    interactions = split.interactions
    return np.bincount(interactions.items[split.is_training], minlength=interactions.num_items)
