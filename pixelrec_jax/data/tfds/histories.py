"""The users of PixelRec as TFDS examples: what a user interacted with, in order of time.

Order is by timestamp, then place in the file, on one machine as on many.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from etils import epath

from pixelrec_jax.data import interactions as tables
from pixelrec_jax.errors import UserError

_USERS_AT_ONCE = 10_000
# A part of a user's history: first byte of the piece of the file, item ids, timestamps.
Part = tuple[int, list[str], list[int]]


def examples(path: str, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the key and example of every user of a CSV.

    Sorted columns are kept in a temporary folder inside `folder` (12 bytes an interaction) and
    mapped, so that the memory is that of `interactions.read_csv`.
    """
    table = tables.read_csv(Path(path))
    item_ids, user_ids = table.item_ids, table.user_ids
    with tempfile.TemporaryDirectory(dir=folder, prefix="columns.") as columns:
        tables.write_columns(table, Path(columns))
        del table
        offsets, items, timestamps = (
            np.load(Path(columns) / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in ("offsets", "items", "timestamps")
        )
        for first in range(0, len(user_ids), _USERS_AT_ONCE):
            users = user_ids[first : first + _USERS_AT_ONCE]
            bounds = offsets[first + 1 : first + len(users) + 2]  # user 0 is padding
            start = int(bounds[0])
            names = item_ids.gather(items[start : bounds[-1]] - 1)
            for user_id, (low, high) in zip(users, itertools.pairwise(bounds), strict=True):
                history = names[int(low) - start : int(high) - start].to_list()
                yield _example(user_id, history, timestamps[low:high])


def _example(user_id: str, item_ids: list[str], timestamps: Any) -> tuple[str, dict[str, Any]]:
    return user_id, {
        "user_id": user_id,
        "item_ids": item_ids,
        "timestamps": np.asarray(timestamps, np.int64),
    }


def pieces(path: str, size: int) -> list[int]:
    """Returns the first bytes of the pieces of at most `size` bytes that a file is read in."""
    return list(range(0, epath.Path(path).stat().length, size))


def parts(start: int, *, path: str, size: int) -> Iterator[tuple[str, Part]]:
    """Yields (user id, part of the history) of the lines that begin in start : start + size.

    A line is one interaction. Raises `UserError` for a line without ids or an integer timestamp.
    """
    with epath.Path(path).open("rb") as file:
        header = file.readline()
        if start > len(header):
            file.seek(start - 1)
            file.readline()  # the line that began before
        text = file.read(max(0, start + size - file.tell()))
        if not text.endswith(b"\n"):
            text += file.readline()
    where = f"{path!r}, in the {size:,} bytes from {start:,} on"
    try:
        table = pl.read_csv(header.rstrip(b"\r\n") + b"\n" + text, infer_schema=False)
        table = table.select(tables.COLUMNS).filter(~pl.all_horizontal(pl.all().is_null()))
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{where}: not a valid CSV: {str(error).splitlines()[0]}") from None
    table = table.with_columns(
        pl.col("timestamp").cast(pl.Int64, strict=False).alias("time"),
    )
    wrong = table.filter(
        pl.col("time").is_null()
        | pl.any_horizontal(pl.col("item_id", "user_id").fill_null("") == "")
    )
    if len(wrong):
        line = ",".join(value or "" for value in wrong.select(tables.COLUMNS).row(0))
        raise UserError(f"{where}: expected {','.join(tables.COLUMNS)}, got {line!r}")
    for user_id, item_ids, times in (
        table.group_by("user_id", maintain_order=True).agg("item_id", "time").iter_rows()
    ):
        yield user_id, (start, item_ids, times)


def merge(user_id: str, history: Iterable[Part]) -> tuple[str, dict[str, Any]]:
    """Returns the key and example of one user from the parts of the history, in any order."""
    ordered = sorted(history)
    items = [item for _, item_ids, _ in ordered for item in item_ids]
    times = np.concatenate([times for _, _, times in ordered])
    order = np.argsort(times, kind="stable")
    return _example(user_id, [items[place] for place in order], times[order])


def check_header(path: str) -> None:
    """Raises `UserError` if a CSV lacks a column of interactions."""
    with epath.Path(path).open("rb") as file:
        names = file.readline().decode("utf-8-sig", "replace").strip().replace('"', "").split(",")
    if absent := [name for name in tables.COLUMNS if name not in names]:
        raise UserError(
            f"{path!r} has no column {', '.join(absent)}; it has {', '.join(names)}, needed are "
            f"{', '.join(tables.COLUMNS)}"
        )
