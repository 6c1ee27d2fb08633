"""Interactions in memory, and as integer columns that are sorted by user and time."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import polars as pl

COLUMNS = ("item_id", "user_id", "timestamp")
# Interactions that are sorted at a time; bounds the memory of sorting for any dataset.
_ROWS_PER_BLOCK = 8_000_000
_BLOCKS_AT_ONCE = 4

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Table:
    """Interactions in file order, one in each row.

    Attributes:
      users, items: int32[rows], indices into `user_ids` and `item_ids`, called codes: they count
        from 0 in order of first appearance, without gaps.
      timestamps: int64[rows].
      user_ids, item_ids: the original ids.
    """

    users: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    user_ids: pl.Series
    item_ids: pl.Series

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of users, items and interactions."""
        return {
            "users": len(self.user_ids),
            "items": len(self.item_ids),
            "interactions": len(self.users),
        }

    def where(self, keep: np.ndarray) -> "Table":
        """Returns the rows where `keep` bool[rows] is True, without unused users and items."""
        if keep.all():
            return self
        users, user_ids = _recode(self.users[keep], self.user_ids)
        items, item_ids = _recode(self.items[keep], self.item_ids)
        return Table(users, items, self.timestamps[keep], user_ids, item_ids)


def _recode(codes: np.ndarray, ids: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Returns codes renumbered by first appearance, and the ids of the new codes."""
    order = pl.Series(codes, dtype=pl.Int32).unique(maintain_order=True).to_numpy()
    renumbered = np.zeros(len(ids), np.int32)
    renumbered[order] = np.arange(len(order), dtype=np.int32)
    return renumbered[codes], ids.gather(order)


def _by_block(table: Table, offsets: np.ndarray, work: Callable[[np.ndarray], T]) -> Iterator[T]:
    """Yields the results of `work` for blocks of whole users, in order of user.

    `work` is given the indices of the block's rows in file order. A few blocks are processed at the
    same time, because NumPy's sorting releases Python's lock.
    """
    users, first, bounds = len(offsets) - 1, 0, []
    while first < users:
        limit = offsets[first] + _ROWS_PER_BLOCK
        last = max(first + 1, int(np.searchsorted(offsets, limit, side="right")) - 1)
        bounds.append((first, last))
        first = last

    def work_on(bound: tuple[int, int]) -> T:
        first, last = bound
        return work(np.flatnonzero((table.users >= first) & (table.users < last)))

    pending: deque[Future[T]] = deque()  # at most one for each thread, as results take memory
    workers = min(os.cpu_count() or 1, _BLOCKS_AT_ONCE)
    with ThreadPoolExecutor(workers) as pool:
        for bound in bounds:
            if len(pending) == workers:
                yield pending.popleft().result()
            pending.append(pool.submit(work_on, bound))
        while pending:
            yield pending.popleft().result()


def _offsets(table: Table) -> np.ndarray:
    counts = np.bincount(table.users, minlength=len(table.user_ids))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def count_repeats(table: Table) -> int:
    """Returns how many interactions repeat an earlier one of the same user and item."""

    def count(rows: np.ndarray) -> int:
        pairs = table.users[rows].astype(np.int64) * len(table.item_ids) + table.items[rows]
        pairs.sort()
        return int(np.count_nonzero(pairs[1:] == pairs[:-1]))

    return sum(_by_block(table, _offsets(table), count))


def first_of_repeats(table: Table) -> np.ndarray:
    """Returns bool[rows]: the earliest interaction of each user and item; ties keep file order."""

    def later(rows: np.ndarray) -> np.ndarray:
        users, items = table.users[rows], table.items[rows]
        order = np.lexsort((table.timestamps[rows], items, users))
        users, items = users[order], items[order]
        repeat = (users[1:] == users[:-1]) & (items[1:] == items[:-1])
        return rows[order[1:][repeat]]

    keep = np.ones(len(table.users), bool)
    for rows in _by_block(table, _offsets(table), later):
        keep[rows] = False
    return keep


def of_frequent_users(table: Table, minimum: int) -> np.ndarray:
    """Returns bool[rows]: the interactions of users with at least `minimum` of them."""
    return (np.bincount(table.users) >= minimum)[table.users]


def write_columns(table: Table, directory: Path) -> None:
    """Writes the columns, sorted by user, then time, then file order, and the original ids."""
    offsets = _offsets(table)
    # User 0 is padding and has no interactions: offsets[0] = offsets[1] = 0.
    np.save(directory / "offsets.npy", np.concatenate([np.zeros(1, np.int64), offsets]))
    with (
        (directory / "items.npy").open("wb") as items,
        (directory / "timestamps.npy").open("wb") as timestamps,
    ):
        _write_header(items, np.int32, len(table.users))
        _write_header(timestamps, np.int64, len(table.users))

        def in_time_order(rows: np.ndarray) -> np.ndarray:
            return rows[np.lexsort((table.timestamps[rows], table.users[rows]))]

        for rows in _by_block(table, offsets, in_time_order):
            items.write((table.items[rows] + np.int32(1)).data)
            timestamps.write(table.timestamps[rows].data)
    for ids, name in ((table.item_ids, "item_id"), (table.user_ids, "user_id")):
        # The oldest form of text has one way to write it, and every reader of Arrow knows it.
        oldest = pl.CompatLevel.oldest()
        pl.DataFrame({name: ids}).write_ipc(directory / f"{name}s.arrow", compat_level=oldest)


def _write_header(file: BinaryIO, dtype: type, rows: int) -> None:
    # Columns are written block by block, since a full disk kills a memory map with SIGBUS.
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(file, header)
