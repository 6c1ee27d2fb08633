"""Sources of negatives: the items that a loss compares each positive with."""

from collections.abc import Callable
from typing import Annotated, Protocol

import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.data.rows import Rows
from pixelrec_jax.data.tasks import Task
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import Option, Whole, keys_of_chosen


class Negatives(Protocol):
    """A source of negatives; it is pickled to workers and called from several threads."""

    def draw(self, rows: Rows, rng: np.random.Generator) -> np.ndarray:
        """Returns item ids int32[B, T, K], 0 without a target; `rng` is the only randomness."""
        ...


class Uniform:
    """Draws negatives for each target uniformly from the catalogue, as the reference does.

    No negative is in the exclusion set of its row. Validation and test targets are allowed, and a
    target may have the same negative twice.
    """

    def __init__(
        self,
        task: Task,
        *,
        count: Annotated[int, Option("K, the number of negatives of each target", Whole())] = 1,
    ):
        """Builds the source of K = `count` negatives for the rows of a task.

        Raises:
          UserError: an exclusion set may hold the whole catalogue.
        """
        self.num_items, self.count = task.split.interactions.num_items, count
        if self.num_items - 1 <= task.most_excluded:
            raise UserError(
                f"the catalogue has {self.num_items - 1} items, but negatives are drawn outside "
                f"of up to {task.most_excluded} items of a user; use a larger catalogue or, where "
                "a window is excluded, a smaller task.history_length"
            )

    def draw(self, rows: Rows, rng: np.random.Generator) -> np.ndarray:
        """Returns int32[B, T, K]; a draw in the exclusion set is repeated."""
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


# Each is built from a task; keyword arguments that are annotated with an `Option` are keys of
# `config.negatives`.
NEGATIVES: dict[str, Callable[..., Negatives]] = {"uniform": Uniform}


def build_negatives(config: ConfigDict, task: Task) -> Negatives:
    """Returns the source that `config.negatives` names, for the rows of a task.

    Raises:
      UserError: the name is unknown, or the source cannot serve the task.
    """
    given = config.negatives
    options = {key: given[key] for key in keys_of_chosen("negatives", given.name, NEGATIVES)}
    return NEGATIVES[given.name](task, **options)
