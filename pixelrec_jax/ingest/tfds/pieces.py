"""Reads a CSV of interactions in pieces that fit into memory, from a disk or a bucket."""

from collections.abc import Iterator

import polars as pl
from etils import epath

from pixelrec_jax.ingest.columns import COLUMNS
from pixelrec_jax.ingest.csv_file import open_csv
from pixelrec_jax.ingest.interactions_file import CONTROL
from pixelrec_jax.system.errors import UserError

SIZE = 32 << 20  # bytes


def check(path: str) -> None:
    """Raises `UserError` if the file is empty, lacks a column or has only a header."""
    with epath.Path(path).open("rb") as file:
        header, line = file.readline().decode("utf-8-sig", "replace"), file.readline()
    if not header:
        raise UserError(f"interactions file {path!r} is empty; give a CSV file with a header")
    names = header.strip().replace('"', "").split(",")
    if absent := [name for name in COLUMNS if name not in names]:
        raise UserError(
            f"{path!r} has no column {', '.join(absent)}; it has {', '.join(names)}; give a file "
            f"with {', '.join(COLUMNS)}"
        )
    if not line:
        raise UserError(f"interactions file {path!r} has a header but no interactions; add some")


def starts(path: str, size: int = SIZE) -> Iterator[int]:
    """Yields the first byte of each piece of a file."""
    yield from range(0, epath.Path(path).stat().length, size)


def read(start: int, *, path: str, size: int = SIZE) -> pl.DataFrame:
    """Returns the interactions of the lines that begin in the bytes start : start + size.

    Each line is one interaction; ids are text and timestamps int64. Raises `UserError` for a line
    that cannot be read or is without both ids and an integer timestamp.
    """
    with epath.Path(path).open("rb") as file:
        header = file.readline()
        if start > len(header):
            file.seek(start - 1)
            file.readline()  # a line that began before the piece
        text = file.read(max(0, start + size - file.tell()))
        if text and not text.endswith(b"\n"):
            text += file.readline()
    where = f"{path!r}, in the {size:,} bytes from {start:,} on"
    try:
        file = open_csv(header.rstrip(b"\r\n") + b"\n" + text, where, wanted=COLUMNS)
        table = file.scan().select(COLUMNS).collect()
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{where}: not a valid CSV: {str(error).splitlines()[0]}; mend the file"
        ) from None
    table = table.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
    file.check(len(table), COLUMNS)
    integer = pl.col("timestamp").cast(pl.Int64, strict=False)
    ids = pl.col("item_id", "user_id").fill_null("")
    wrong = table.filter(
        integer.is_null() | pl.any_horizontal(ids == "", ids.str.contains(CONTROL))
    )
    if len(wrong):
        line = ",".join(value or "" for value in wrong.row(0))
        raise UserError(f"{where}: expected {','.join(COLUMNS)}, got {line!r}; mend the line")
    return table.with_columns(integer)
