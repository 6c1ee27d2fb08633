"""Reads interactions from CSV and writes them as integer columns, sorted by user and time."""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import polars as pl

from pixelrec_jax.data.time_units import OTHER, UNITS
from pixelrec_jax.ingest.csv_file import CsvFile, one_line_errors, open_csv
from pixelrec_jax.system.errors import UserError

COLUMNS = ("item_id", "user_id", "timestamp")
# Interactions that are sorted at a time; bounds the memory of sorting for any dataset.
_ROWS_PER_BLOCK = 8_000_000
_BLOCKS_AT_ONCE = 4
# Seconds from 1970 to 1990-01-01, and to the last second of a signed int32, in 2038.
_EPOCH_SECONDS = (631_152_000, 2**31 - 1)

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


def read_csv(path: Path) -> Table:
    """Returns the interactions of a CSV with the columns item_id, user_id and timestamp.

    The text is scanned four times (count, user ids, item ids, codes) instead of held in memory,
    which takes 16 bytes a row plus the distinct ids.

    Raises:
      UserError: the file is missing, empty or without the columns; or an id is empty, a timestamp
        is not an integer or a row cannot be read, with the number of the line.
    """
    with one_line_errors(path, "interactions file"):
        file = open_csv(path)
        try:
            frame, ids = _read_codes(file)
        except pl.exceptions.PolarsError:
            _raise_bad_line(file, has_timestamps=True)
            raise
    if sum(frame.null_count().row(0)):
        _raise_bad_line(file, has_timestamps=True)
        frame = frame.drop_nulls()  # Blank lines only, as at the end of many files.
    file.check(frame.height, COLUMNS)
    if not frame.height:
        raise UserError(
            f"interactions file {str(path)!r} has a header but no interactions; add some"
        )
    # The frame drops one column at a time, so that only the column being copied is held twice.
    arrays = {name: frame.drop_in_place(name).to_numpy() for name in COLUMNS}
    return Table(
        arrays["user_id"], arrays["item_id"], arrays["timestamp"], ids["user_id"], ids["item_id"]
    )


def _read_codes(file: CsvFile) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
    scan = file.scan(schema_overrides={"timestamp": pl.Int64})
    header = scan.collect_schema().names()
    if missing := [name for name in COLUMNS if name not in header]:
        raise UserError(
            f"{file.name} has no column {', '.join(missing)}; it has {', '.join(header)}; "
            "it must be comma-separated, with a header line"
        )
    ids = {}
    for name in ("user_id", "item_id"):
        first = scan.select(name).with_row_index("row").drop_nulls()
        first = first.group_by(name).agg(pl.col("row").min()).collect(engine="streaming")
        ids[name] = first.sort("row")[name]
        if (ids[name] == "").any():
            _raise_bad_line(file, has_timestamps=False)
    codes = [pl.col(n).cast(pl.Enum(ids[n])).to_physical().cast(pl.Int32) for n in ids]
    frame = scan.select(COLUMNS).with_columns(codes).collect(engine="streaming")
    return frame, ids


def _raise_bad_line(file: CsvFile, *, has_timestamps: bool) -> None:
    """Raises `UserError` for the first line with an empty id or a bad timestamp, if there is one.

    The number of a line counts records and the header. Blank lines are skipped.
    """
    rows = file.scan().select(COLUMNS).with_row_index("row", offset=2)
    rows = rows.filter(~pl.all_horizontal(pl.col(COLUMNS).is_null()))
    bad = [pl.col(name).fill_null("") == "" for name in ("item_id", "user_id")]
    if has_timestamps:
        bad.append(pl.col("timestamp").cast(pl.Int64, strict=False).is_null())
    try:
        first = rows.filter(pl.any_horizontal(bad)).head(1).collect(engine="streaming").to_dicts()
    except pl.exceptions.PolarsError:
        return  # not readable as text either: the caller reports the first error of polars
    for row in first:
        where = f"{file.name} line {row['row']}"
        for name in ("item_id", "user_id"):
            if not row[name]:
                raise UserError(f"{where}: {name} is empty; every interaction needs one")
        value = row["timestamp"]
        raise UserError(
            f"{where}: timestamp {value or ''!r} is not an integer (64 bit); every interaction "
            "needs one"
        )


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


def recognise_unit(timestamps: np.ndarray) -> str:
    """Returns the unit in which timestamps int64[rows] count from 1970, or "other".

    A unit (seconds, milli-, micro- or nanoseconds) is recognised if all timestamps are then dates
    from 1990 to 2038.
    """
    first, last = int(timestamps.min()), int(timestamps.max())
    for unit in ("seconds", "milliseconds", "microseconds", "nanoseconds"):
        per_second = UNITS["seconds"] // UNITS[unit]
        earliest, latest = (bound * per_second for bound in _EPOCH_SECONDS)
        if earliest <= first and last <= latest:
            return unit
    return OTHER


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
        pl.DataFrame({name: ids}).write_ipc(directory / f"{name}s.arrow")


def _write_header(file: BinaryIO, dtype: type, rows: int) -> None:
    # Columns are written block by block, since a full disk kills a memory map with SIGBUS.
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(file, header)
