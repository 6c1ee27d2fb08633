"""Which interactions make a dataset: whose users have enough of them, or are in a sample.

The sub-datasets of the paper (section 2.1) are random users of those with enough interactions.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from pixelrec_jax.ingest.columns import Table, first_of_repeats, of_frequent_users
from pixelrec_jax.system.errors import UserError, nearest

_LEAST = 5  # comments of a user of the paper's sub-datasets
# Leave-one-out: the last is the test target, the one before it the validation target.
_LEAST_INTERACTIONS = 3

Dropped = dict[str, dict[str, int]]  # why -> how many users, items, interactions


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
    if re.fullmatch(r"0*[1-9]\d{0,11}", text, re.ASCII):
        return Sample(int(text), 0)
    if not text:
        return Sample(None, 0)
    raise UserError(f"--sample={text[:40]} is no positive number of users{nearest(text, NAMED)}")


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


def select(table: Table, options: dict[str, Any], dropped: Dropped) -> Table:
    """Returns the rows that the options of `prepare` leave, but for items without images."""
    if options["repeats"] == "first":
        table = drop(table, first_of_repeats(table), "repeats", dropped)
    table = drop_rare_users(table, least_interactions(options), dropped)
    if users := parse(options["sample"]).users:
        table = drop(table, random_users(table, users, options["seed"]), "sample", dropped)
    return table


def least_interactions(options: dict[str, Any]) -> int:
    """Returns how many interactions a user needs."""
    return max(options["min_interactions"], parse(options["sample"]).min_interactions)


def drop(table: Table, keep: np.ndarray, why: str, dropped: Dropped) -> Table:
    """Returns the rows `keep` and adds what that costs to dropped[why]."""
    kept = table.where(keep)
    if kept is table:
        return table
    before, after = table.counts, kept.counts
    account = dropped.setdefault(why, dict.fromkeys(before, 0))
    for name in before:
        account[name] += before[name] - after[name]
    return kept


def drop_rare_users(table: Table, minimum: int, dropped: Dropped) -> Table:
    """Returns the rows of users with at least so many interactions, see `drop`.

    Raises `UserError` if there are none, or if any has too few to be split.
    """
    if minimum > 1:
        keep = of_frequent_users(table, minimum)
        if not keep.any():
            raise UserError(
                f"--min_interactions={minimum} leaves no users; the most that any of the "
                f"{table.counts['users']:,} has is {np.bincount(table.users).max():,}"
            )
        table = drop(table, keep, "min_interactions", dropped)
    short = ~of_frequent_users(table, _LEAST_INTERACTIONS)
    if short.any():
        users = table.users[short]
        example, count = table.user_ids[int(users[0])], int((users == users[0]).sum())
        raise UserError(
            f"{len(np.unique(users)):,} of {table.counts['users']:,} users have fewer than "
            f"{_LEAST_INTERACTIONS} interactions (user {example!r} has {count}), too few for "
            f"leave-one-out; drop them with --min_interactions={_LEAST_INTERACTIONS}"
        )
    return table
