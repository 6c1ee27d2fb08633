"""Selection of interactions: of users with enough of them, or of a random sample of users.

The sub-datasets of the paper (section 2.1) are random samples of users with enough interactions.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from pixelrec_jax.ingest.columns import Table, first_of_repeats, of_frequent_users
from pixelrec_jax.system.errors import UserError, nearest

_LEAST = 5  # interactions (comments) of each user in the paper's sub-datasets
# Leave-one-out needs a test target, a validation target and at least one interaction before them.
_LEAST_INTERACTIONS = 3

Dropped = dict[str, dict[str, int]]  # reason -> numbers of users, items and interactions


class Sample(NamedTuple):
    """A sample: the number of random users, None for all, and the minimum of interactions."""

    users: int | None
    min_interactions: int


NAMED = {
    "pixel200k": Sample(200_000, _LEAST),
    "pixel1m": Sample(1_000_000, _LEAST),
    "pixel8m": Sample(None, _LEAST),
}


def parse(text: str) -> Sample:
    """Returns the sample of a name in `NAMED`, of a number of users, or of "" for all users."""
    if text.lower() in NAMED:
        return NAMED[text.lower()]
    if re.fullmatch(r"0*[1-9]\d{0,11}", text, re.ASCII):
        return Sample(int(text), 0)
    if not text:
        return Sample(None, 0)
    raise UserError(f"--sample={text[:40]} is not a positive number of users{nearest(text, NAMED)}")


def random_users(table: Table, users: int, seed: int) -> np.ndarray:
    """Returns bool[rows]: the interactions of so many random users.

    With the same seed, a larger sample contains a smaller one, as Pixel1M contains Pixel200K.
    """
    available = table.counts["users"]
    if users > available:
        raise UserError(
            f"--sample asks for {users:,} users, but there are {available:,}; ask for at most that "
            "many"
        )
    chosen = np.zeros(available, bool)
    chosen[np.random.default_rng(seed).permutation(available)[:users]] = True
    return chosen[table.users]


def select(table: Table, options: dict[str, Any], dropped: Dropped) -> Table:
    """Returns the rows that the options of `prepare` keep; items without images are kept here."""
    if options["repeats"] == "first":
        table = drop(table, first_of_repeats(table), "repeats", dropped)
    table = drop_rare_users(table, least_interactions(options), dropped)
    if users := parse(options["sample"]).users:
        table = drop(table, random_users(table, users, options["seed"]), "sample", dropped)
    return table


def least_interactions(options: dict[str, Any]) -> int:
    """Returns the minimum of interactions of a user."""
    return max(options["min_interactions"], parse(options["sample"]).min_interactions)


def drop(table: Table, keep: np.ndarray, why: str, dropped: Dropped) -> Table:
    """Returns the rows where `keep` bool[rows] is True and adds what is lost to dropped[why]."""
    kept = table.where(keep)
    if kept is table:
        return table
    before, after = table.counts, kept.counts
    account = dropped.setdefault(why, dict.fromkeys(before, 0))
    for name in before:
        account[name] += before[name] - after[name]
    return kept


def drop_rare_users(table: Table, minimum: int, dropped: Dropped) -> Table:
    """Returns the rows of users with at least so many interactions, by `drop`.

    Raises:
      UserError: no user is left, or one has too few interactions for leave-one-out.
    """
    if minimum > 1:
        keep = of_frequent_users(table, minimum)
        if not keep.any():
            raise UserError(
                f"--min_interactions={minimum} leaves no users; the most that any of the "
                f"{table.counts['users']:,} has is {np.bincount(table.users).max():,}; give less"
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
