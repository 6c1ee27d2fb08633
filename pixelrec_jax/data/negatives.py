"""Where negatives come from: the items that positives are told apart from."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.data.rows import Rows
from pixelrec_jax.data.tasks import Task
from pixelrec_jax.system.errors import UserError, nearest


class Negatives(Protocol):
    """A source of negatives; it is pickled to worker processes and called from several threads."""

    def draw(self, rows: Rows, rng: np.random.Generator) -> np.ndarray:
        """Returns int32[B, T, K] item ids, 0 without a target; `rng` is the only randomness."""
        ...


class Uniform:
    """Own negatives of each target, drawn uniformly from the catalogue as in the reference.

    None is in the row's exclusion set. Items of validation and test targets are allowed, and
    independent draws may repeat each other.
    """

    def __init__(self, task: Task, *, count: int):
        """Args: `task` makes the rows, `count` is K.

        Raises:
          UserError: the catalogue may not be larger than an exclusion set.
        """
        self.num_items, self.count = task.split.interactions.num_items, count
        if self.num_items - 1 <= task.most_excluded:
            raise UserError(
                f"the catalogue has {self.num_items - 1} items, but negatives are drawn outside "
                f"of up to {task.most_excluded} items of a user; use a larger catalogue or, where "
                "a window is excluded, a smaller task.history_length"
            )

    def draw(self, rows: Rows, rng: np.random.Generator) -> np.ndarray:
        """Returns int32[B, T, K]; draws that hit the exclusion set are drawn again."""
        shape = (*rows.positive.shape, self.count)
        negative = rng.integers(1, self.num_items, size=shape, dtype=np.int32)
        row, *_ = np.indices(shape, sparse=True)
        flat, row = negative.reshape(-1), np.broadcast_to(row, shape).reshape(-1)
        pending = np.arange(flat.size)
        while True:
            taken = (flat[pending, None] == rows.exclude[row[pending]]).any(axis=1)
            pending = pending[taken]
            if not pending.size:
                return np.where(rows.weight[..., None] > 0, negative, 0)
            flat[pending] = rng.integers(1, self.num_items, size=pending.size, dtype=np.int32)


NEGATIVES: dict[str, Callable[..., Negatives]] = {"uniform": Uniform}


def build_negatives(config: ConfigDict, task: Task) -> Negatives:
    """Returns the source that `config.negatives` names, for the rows of a task.

    Raises:
      UserError: there is none of that name, or it cannot serve the task.
    """
    options = config.negatives.to_dict()
    name = options.pop("name")
    if name not in NEGATIVES:
        raise UserError(f"unknown negatives.name={name!r}{nearest(name, NEGATIVES)}")
    return NEGATIVES[name](task, **options)
