"""CSV files: scans of all their rows, which are counted independently, and one-line errors.

Where a quote stands inside of a field that is not quoted (12" vinyl), polars loses rows without an
error (its issue 21519). So a file is first counted: by line ends where it has no quotes, with
Python's csv where it has. If no field is quoted, polars then reads a quote as any other character.
"""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import open_regular

_BLOCK = 1 << 20  # bytes counted at once
_ROWS = 5_000_000  # compared at once, to find a row that was not read
_LONGEST = 1 << 24  # characters of a field; a quote that stays open takes as many
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # how gzip and zstd begin
_MAYBE_EMPTY = re.compile(rb'\n(?:[\n\r,]|"")')
_EMPTY = re.compile(rb'(?:"")?(?:,(?:"")?)*+\r?\n?')
# Lines whose quotes are all around whole fields, without quotes or line ends inside.
_PLAIN = re.compile(rb'(?:(?:"[^"\n]*+"|[^",\r\n]*+)(?:,|\r?\n))*+')
_OPENING = re.compile(r'(?:^|,)"')
_FIELD = r'(?:"(?:[^"]++|"")*+"|[^",\r\n]*+)'
_QUOTED_AS_A_WHOLE = re.compile(rf"{_FIELD}(?:,{_FIELD})*+\r?\n?")


@dataclass(frozen=True)
class CsvFile:
    """A CSV whose rows are counted.

    Attributes:
      source: its path, or its content.
      name: what messages call it.
      rows: how many rows it has below the header; those without any value do not count.
      quoted: whether any field is in quotes; otherwise quotes are parts of values.
    """

    source: Path | bytes
    name: str
    rows: int
    quoted: bool

    def scan(self, **options) -> pl.LazyFrame:
        """Returns all columns as text; `options` are those of `polars.scan_csv`."""
        quote = '"' if self.quoted else None
        return pl.scan_csv(self.source, infer_schema=False, glob=False, quote_char=quote, **options)

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
        rows = _rows(self.source, self.name, split=True, quoted=self.quoted)
        header = next(row for row in rows if row.count).fields
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


class _Rows(NamedTuple):
    """One row as Python's csv reads it, or rows that are counted without being split.

    Attributes:
      line: the number of the first line.
      count: how many rows have a value.
      quoted: the number of a line with a field within quotes; 0 if there is none.
      stray: whether a quote stands inside of a field that is not within quotes.
      fields: the values of one row.
    """

    line: int
    count: int
    quoted: int = 0
    stray: bool = False
    fields: Sequence[str] = ()


def open_csv(source: Path | bytes, name: str | None = None) -> CsvFile:
    """Returns a CSV, of which all rows were counted.

    Args:
      source: its path, or its content.
      name: what messages call it; by default its path.

    Raises:
      UserError: some fields are quoted while others have quotes inside, a quoted field does not
        end, or text follows its end; with the number of the line.
    """
    name = repr(str(source)) if name is None else name
    count, quoted, stray = 0, 0, 0  # the last two are lines, 0 if there is none
    for rows in _rows(source, name):
        count += rows.count
        quoted = quoted or rows.quoted
        stray = stray or rows.line * rows.stray
    if quoted and stray:
        raise UserError(
            f"{name} line {stray}: a quote stands inside of a field, while line {quoted} has a "
            "field within quotes; put the field within quotes and write its own quotes twice"
        )
    return CsvFile(source, name, max(count - 1, 0), quoted > 0)


def _rows(
    source: Path | bytes, name: str, *, split: bool = False, quoted: bool = True
) -> Iterator[_Rows]:
    """Yields the rows of a CSV: with `split` one by one, otherwise many where that is enough.

    Without `quoted`, quotes are characters like any other.
    """
    line, blocks = 1, _blocks(source)
    for block in blocks:
        if line == 1:
            block = block.removeprefix(codecs.BOM_UTF8)
        quote = block.find(b'"')
        if not split and (quote < 0 or _PLAIN.fullmatch(block)):
            first = 0 if quote < 0 else line + block.count(b"\n", 0, quote)
            yield _Rows(line, _count(block), first)
            line += block.count(b"\n")
            continue
        try:
            for text, fields in _parse(block, blocks, quoted=quoted):
                opened = line if '"' in text and _OPENING.search(text) else 0
                inside = '"' in text and any('"' in field for field in fields)
                stray = inside and not _QUOTED_AS_A_WHOLE.fullmatch(text)
                yield _Rows(line, any(fields), opened, stray, fields)
                line += text.count("\n")
        except csv.Error as error:
            problem = str(error).partition(" - ")[0]
            raise UserError(
                f"{name} is not a valid CSV: {problem}, in the row of line {line}; mend that row"
            ) from None


def _blocks(source: Path | bytes) -> Iterator[bytes]:
    """Yields the content of a file, decompressed, in blocks of whole lines."""
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file:
        compressed = file.read(4).startswith(_COMPRESSED)
        file.seek(0)
        while not compressed and (block := file.read(_BLOCK)):
            yield block + file.readline()
    if not compressed:
        return
    lines = pl.scan_csv(
        source,
        glob=False,
        has_header=False,
        infer_schema=False,
        new_columns=["line"],
        quote_char=None,
        separator="\x01",  # a character that no text has
        truncate_ragged_lines=True,
    )
    for batch in lines.collect_batches(maintain_order=True):
        yield "".join(f"{line}\n" for line in batch["line"].fill_null("")).encode()


def _count(block: bytes) -> int:
    """Returns how many lines have a value, if their quotes are all around whole fields."""
    if _MAYBE_EMPTY.search(b"\n" + block):
        return sum(1 for line in io.BytesIO(block) if not _EMPTY.fullmatch(line))
    return block.count(b"\n") + (not block.endswith(b"\n"))


def _parse(
    block: bytes, blocks: Iterator[bytes], *, quoted: bool
) -> Iterator[tuple[str, list[str]]]:
    """Yields text and fields of the rows of a block, and of those after it that its last row needs.

    Raises `csv.Error`.
    """
    last, taken = 0, []  # the last line read so far; the lines of a row

    def lines() -> Iterator[str]:
        nonlocal last
        for part in itertools.chain([block], blocks):
            text = io.StringIO(part.decode("utf-8", "surrogateescape"), newline="\n")
            last += part.count(b"\n") + (not part.endswith(b"\n"))
            for line in text:
                taken.append(line)
                yield line

    csv.field_size_limit(_LONGEST)
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(lines(), strict=True, quoting=quoting)
    for fields in reader:
        yield "".join(taken), fields
        taken.clear()
        if reader.line_num == last:
            return


@contextmanager
def one_line_errors(path: Path, what: str) -> Generator[None]:
    """Raises `UserError` for a file that is missing, unreadable, empty or malformed."""
    try:
        if not path.exists():
            raise UserError(f"{what} {str(path)!r} does not exist; give a CSV file")
        if not path.is_file():
            raise UserError(f"{what} {str(path)!r} is not a file; give a CSV file")
        open_regular(path).close()  # raises "Permission denied" in the words of the system
        yield
    except pl.exceptions.NoDataError:
        raise UserError(f"{what} {str(path)!r} is empty; give a CSV file with a header") from None
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{str(path)!r} is not a valid CSV: {str(error).splitlines()[0]}; mend it, or give "
            "another file"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot read {str(path)!r}: {error.strerror or error}; allow reading it, or give "
            "another file"
        ) from None
