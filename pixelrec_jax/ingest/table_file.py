"""Files of tables: CSV, Parquet and Arrow, told by their first bytes and read lazily.

Polars streams them: memory holds what is collected, and beside it some blocks of a CSV, row groups
of Parquet or record batches of Arrow.
"""

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pixelrec_jax.ingest import column_names, file_formats
from pixelrec_jax.ingest.csv_file import CsvFile, open_csv
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.frames import scan_ipc, scan_parquet

KINDS = "CSV, Parquet or Arrow"


@dataclass(frozen=True)
class ColumnarFile:
    """A Parquet or Arrow file; its metadata says how many rows it has.

    Attributes:
      frame: all columns.
      name: what messages call it.
      rows: how many rows it has.
    """

    frame: pl.LazyFrame
    name: str
    rows: int

    row = "row"
    first_row = 1

    def columns(self) -> list[str]:
        """Returns the names of its columns."""
        return self.frame.collect_schema().names()

    def scan(self) -> pl.LazyFrame:
        """Returns all columns, of the types that the file gives them."""
        return self.frame

    def check(self, read: int, columns: Sequence[str]) -> None:
        """Raises `UserError` unless all rows were read."""
        if read != self.rows:
            raise UserError(
                f"{self.name} has {self.rows:,} rows by its metadata, but {read:,} with "
                f"{', '.join(columns)} were found; write the file again"
            )


TableFile = CsvFile | ColumnarFile


def open_table(path: Path, wanted: Collection[str], *, has_header: bool = True) -> TableFile:
    """Returns the table in a file.

    Args:
      path: the file.
      wanted: names of columns, which tell the separator of a CSV.
      has_header: whether a CSV has one; otherwise its columns are named by position.

    Raises:
      UserError: it is of another format, or rows of a CSV cannot be told apart.
      OSError, PolarsError: it cannot be read; see `one_line_errors`.
    """
    name = repr(str(path))
    if kind := file_formats.columnar(path):
        frame = scan_parquet(path) if kind == "Parquet" else scan_ipc(path)
        return ColumnarFile(frame, name, frame.select(pl.len()).collect().item())
    return open_csv(path, name, wanted=wanted, has_header=has_header)


def find_columns(
    path: Path, columns: Sequence[str], given: Mapping[str, str]
) -> tuple[TableFile, dict[str, str]]:
    """Returns the table in a file, and {our name: name in the file} of the wanted columns.

    Args:
      path: the file.
      columns: our names of the wanted columns.
      given: {our name: name in the file} where they differ; the names in a CSV without a header are
        positions from 1.

    Raises:
      UserError: see `open_table` and `column_names.find`.
    """
    wanted = [given.get(column, column) for column in columns]
    file = open_table(path, wanted, has_header=not column_names.are_positions(given))
    return file, column_names.find(file.columns(), columns, given, file.name)


def as_text(frame: pl.LazyFrame, columns: Mapping[str, str], name: str) -> list[pl.Expr]:
    """Returns expressions of columns of ids as text; whole numbers are written in decimal.

    Args:
      frame: the table.
      columns: {our name: name in the table}.
      name: what messages call the file.

    Raises:
      UserError: a column is of floats, or of another type that cannot be an id.
    """
    schema, texts = frame.collect_schema(), []
    for ours, theirs in columns.items():
        dtype = schema[theirs]
        if dtype.is_float():
            raise UserError(
                f"{name}: {ours} is of type {dtype}, in which 123 is 123.0 and long ids lose their "
                "last digits; write ids as text or integers"
            )
        if not (dtype.is_integer() or dtype in (pl.String, pl.Binary, pl.Categorical, pl.Enum)):
            raise UserError(
                f"{name}: {ours} is of type {str(dtype)[:100]}; write ids as text or integers"
            )
        texts.append(pl.col(theirs).cast(pl.String).alias(ours))
    return texts


@contextmanager
def one_line_errors(path: Path, what: str) -> Generator[None]:
    """Raises `UserError` for a file that is missing, unreadable, empty or malformed."""
    try:
        if not path.exists():
            raise UserError(f"{what} {str(path)!r} does not exist; give a {KINDS} file")
        if not path.is_file():
            raise UserError(f"{what} {str(path)!r} is not a file; give a {KINDS} file")
        yield
    except pl.exceptions.NoDataError:
        raise UserError(f"{what} {str(path)!r} is empty; give a CSV file with a header") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        kind = file_formats.columnar(path) or "CSV"
        why = str(error).partition("\n")[0][:300]
        raise UserError(
            f"{str(path)!r} is not a valid {kind}: {why}; mend it, or give another file"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot read {str(path)!r}: {error.strerror or error}; allow reading it, or give "
            "another file"
        ) from None
