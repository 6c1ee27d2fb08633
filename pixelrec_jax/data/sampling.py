"""The sub-datasets of the paper (section 2.1): random users of those with enough interactions."""

from typing import NamedTuple

import numpy as np

from pixelrec_jax.data.interactions import Table
from pixelrec_jax.errors import UserError, nearest

_LEAST = 5  # comments of a user of the paper's sub-datasets


class Sample(NamedTuple):
    """How many random users, or None for all, and how many interactions each has at least."""

    users: int | None
    min_interactions: int


NAMED = {
    "pixel200k": Sample(200_000, _LEAST),
    "pixel1m": Sample(1_000_000, _LEAST),
    "pixel8m": Sample(None, _LEAST),
}


def parse(text: str) -> Sample:
    """Reads a name of `NAMED`, a number of users, or "" for all."""
    if text.lower() in NAMED:
        return NAMED[text.lower()]
    if text.isdecimal() and int(text):
        return Sample(int(text), 0)
    if not text:
        return Sample(None, 0)
    raise UserError(f"--sample={text} is no positive number of users{nearest(text, NAMED)}")


def random_users(table: Table, users: int, seed: int) -> np.ndarray:
    """Returns the mask bool[rows] of so many random users.

    A smaller sample of the same seed is part of a larger one, as Pixel200K is of Pixel1M.
    """
    available = table.counts["users"]
    if users > available:
        raise UserError(
            f"--sample asks for {users:,} users, there are {available:,}; ask for at most that many"
        )
    chosen = np.zeros(available, bool)
    chosen[np.random.default_rng(seed).permutation(available)[:users]] = True
    return chosen[table.users]
