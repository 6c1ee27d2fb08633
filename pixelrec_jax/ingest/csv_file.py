"""CSV files: scans of all their rows, which are counted independently.

Where a quote stands inside of a field that is not quoted (12" vinyl), polars loses rows without an
error (its issue 21519). So a file is first counted: by line ends where all quotes are around whole
fields, with Python's csv elsewhere. If no field is quoted, polars then reads a quote as any other
character.
"""

import csv
import io
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pixelrec_jax.ingest.column_names import plain_name
from pixelrec_jax.ingest.csv_rows import CsvText
from pixelrec_jax.ingest.file_formats import check_text
from pixelrec_jax.system.errors import UserError

# The first is taken if the header does not tell. The last is MovieLens's; polars reads it as ":",
# with a column without values between two columns.
SEPARATORS = (",", "\t", ";", "|", "::")
_ROWS = 5_000_000  # compared at once, to find a row that was not read


@dataclass(frozen=True)
class CsvFile:
    """A CSV whose rows are counted.

    Attributes:
      text: its text.
      rows: how many rows it has, without the header; those without any value do not count.
      quoted: whether any field is in quotes; otherwise quotes are parts of values.
      positions: the names of the columns of a file without a header, which are 1, 2, ...; otherwise
        None.
    """

    text: CsvText
    rows: int
    quoted: bool
    positions: Sequence[str] | None = None

    row = "line"

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.text.name

    @property
    def first_row(self) -> int:
        """The number of the line of the first row, if no line is blank."""
        return 2 if self.positions is None else 1

    def columns(self) -> list[str]:
        """Returns the names of its columns; of two equal ones polars renames the second."""
        return self.scan().collect_schema().names()

    def scan(self, *, integers: Collection[str] = ()) -> pl.LazyFrame:
        """Returns all columns as text but `integers`, columns that are read as int64."""
        step = len(self.text.separator)
        names = self.positions
        if names is not None and step > 1:
            names = [name for place in names for name in (place, f"after {place}")][:-1]
        frame = pl.scan_csv(
            self.text.source,
            infer_schema=False,
            glob=False,
            quote_char='"' if self.quoted else None,
            separator=self.text.separator[0],
            has_header=self.positions is None,
            new_columns=names,
            schema_overrides=dict.fromkeys(integers, pl.Int64),
        )
        return frame if step == 1 else frame.select(frame.collect_schema().names()[::step])

    def check(self, read: int, columns: Sequence[str]) -> None:
        """Raises `UserError` unless all rows were read, with the first line that was not.

        Args:
          read: how many rows were read; those without a value in `columns` do not count.
          columns: the names of the columns that were read.
        """
        if read == self.rows:
            return
        line, values = self._first_difference(columns)
        if values and not any(values):
            raise UserError(
                f"{self.name} line {line}: {', '.join(columns)} are empty; every row needs them"
            )
        raise UserError(
            f"{self.name} line {line} cannot be read with the rows after it: {self.rows:,} rows "
            f"are there, {read:,} were found; mend the quotes from that line on"
        )

    def _first_difference(self, columns: Sequence[str]) -> tuple[int, tuple[str, ...]]:
        """Returns the first line that was read otherwise by Python's csv, and its values there."""
        read = self._values(columns)
        rows = self.text.rows(split=True, quoted=self.quoted)
        if self.positions is None:
            next(row for row in rows if row.count)  # the header
        header = self.columns()
        places = [header.index(name) for name in columns]
        line = 1
        for line, count, _, _, fields in rows:
            values = tuple(fields[place] if place < len(fields) else "" for place in places)
            if count and values != next(read, None):
                return line, values
        return line, ()

    def _values(self, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yields what polars reads, row by row; rows without a value are left out."""
        rows = self.scan().select(columns).fill_null("")
        with suppress(pl.exceptions.PolarsError):  # from there on nothing is read
            for start in range(0, self.rows, _ROWS):
                yield from filter(any, rows.slice(start, _ROWS).collect().iter_rows())


def open_csv(
    source: Path | bytes,
    name: str | None = None,
    *,
    wanted: Collection[str] = ("item_id",),
    has_header: bool = True,
) -> CsvFile:
    """Returns a CSV after all of its rows were counted.

    Args:
      source: its path, or its content.
      name: what messages call it; by default its path.
      wanted: names of columns, which tell the separator: it is the one between them.
      has_header: otherwise columns are named by their positions, 1, 2, ...

    Raises:
      UserError: it is not text in UTF-8, some fields are quoted while others have quotes inside, a
        quoted field does not end, or text follows its end; with the number of the line.
    """
    name = repr(str(source)) if name is None else name
    first = next(CsvText(source, name).blocks(), b"")
    check_text(first[:4096], name)
    separator, fields = _separator(first, wanted)
    text = CsvText(source, name, separator)
    count, quoted, stray = 0, 0, 0  # the last two are lines, 0 if there is none
    for rows in text.rows(quoted=len(separator) == 1):
        count += rows.count
        quoted = quoted or rows.quoted
        stray = stray or rows.line * rows.stray
    if quoted and stray:
        raise UserError(
            f"{name} line {stray}: a quote stands inside of a field, while line {quoted} has a "
            "field within quotes; put the field within quotes and write its own quotes twice"
        )
    positions = None if has_header else [str(place + 1) for place in range(len(fields))]
    return CsvFile(text, max(count - has_header, 0), quoted > 0, positions)


def _separator(block: bytes, wanted: Collection[str]) -> tuple[str, list[str]]:
    """Returns the separator of a CSV, and the fields of its first row.

    It is the one that gives most of the wanted names, and of these the one that gives most fields.
    """
    text = block.decode("utf-8", "replace").lstrip("\r\n")
    rows = {separator: _first_row(text, separator) for separator in SEPARATORS}

    def fitness(separator: str) -> tuple[int, int]:
        names = set(rows[separator]) | set(map(plain_name, rows[separator]))
        return len(names & set(wanted)), len(rows[separator])

    best = max(SEPARATORS, key=fitness)
    return best, rows[best]


def _first_row(text: str, separator: str) -> list[str]:
    if len(separator) > 1:
        return text.partition("\n")[0].rstrip("\r").split(separator)
    try:
        return next(csv.reader(io.StringIO(text, newline="\n"), delimiter=separator), [])
    except csv.Error:  # quotes that are not around whole fields
        return text.partition("\n")[0].rstrip("\r").split(separator)
