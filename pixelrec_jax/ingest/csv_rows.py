"""Rows of CSV text, counted or split independently of polars.

Memory holds one block of the text and one row; a field may take 16 MB.
"""

import codecs
import csv
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from pixelrec_jax.ingest.file_formats import COMPRESSED
from pixelrec_jax.system.errors import UserError

_BLOCK = 1 << 20  # bytes counted at once
_LONGEST = 1 << 24  # characters of a field; a quote that stays open takes as many


class Rows(NamedTuple):
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


@dataclass(frozen=True)
class CsvText:
    """A CSV as text.

    Attributes:
      source: its path, or its content.
      name: what messages call it.
      separator: one of `csv_file.SEPARATORS`; with "::" the text has no quoted fields.
    """

    source: Path | bytes
    name: str
    separator: str = ","

    def rows(self, *, split: bool = False, quoted: bool = True) -> Iterator[Rows]:
        """Yields the rows: with `split` one by one, otherwise many where that is enough.

        Without `quoted`, quotes are characters like any other. Raises `UserError` for a row that
        cannot be split, with the number of its line.
        """
        patterns = _patterns(self.separator[0])
        line, blocks = 1, self.blocks()
        for block in blocks:
            if len(self.separator) > 1:
                self._check_pairs(block, line)
            quote = block.find(b'"') if quoted else -1
            line_ends = _places(block, "\n")
            if not split and (quote < 0 or patterns.are_fields_whole(block, line_ends)):
                first = 0 if quote < 0 else line + block.count(b"\n", 0, quote)
                yield Rows(line, patterns.count(block, line_ends), first)
                line += len(line_ends)
                continue
            try:
                for text, fields in self._parse(block, blocks, quoted=quoted):
                    opened = line if '"' in text and patterns.opening.search(text) else 0
                    inside = '"' in text and any('"' in field for field in fields)
                    stray = inside and not patterns.quoted_as_a_whole.fullmatch(text)
                    yield Rows(line, any(fields), opened, stray, fields)
                    line += text.count("\n")
            except csv.Error as error:
                problem = str(error).partition(" - ")[0]
                raise UserError(
                    f"{self.name} is not a valid CSV: {problem}, in the row of line {line}; mend "
                    "that row"
                ) from None

    def blocks(self) -> Iterator[bytes]:
        """Yields the text in blocks of whole lines, decompressed and without a mark of UTF-8.

        Raises `UserError` for a line that is too long.
        """
        blocks = _decompressed(self.source) if _is_compressed(self.source) else self._plain_blocks()
        for number, block in enumerate(blocks):
            yield block if number else block.removeprefix(codecs.BOM_UTF8)

    def _plain_blocks(self) -> Iterator[bytes]:
        with _open(self.source) as file:
            while block := file.read(_BLOCK):
                block += (rest := file.readline(_LONGEST))
                if len(rest) == _LONGEST and not rest.endswith(b"\n"):
                    raise UserError(
                        f"{self.name} has a line of more than {_LONGEST:,} bytes; give a table "
                        "with a line for each row"
                    )
                yield block

    def _check_pairs(self, block: bytes, line: int) -> None:
        """Raises `UserError` for a colon that is a part of a field in a text separated by "::"."""
        if block.count(b":") == 2 * block.count(b"::"):
            return
        for number, text in enumerate(block.split(b"\n"), line):
            if text.count(b":") != 2 * text.count(b"::"):
                raise UserError(
                    f"{self.name} line {number}: a ':' stands beside the separator '::', where "
                    "fields cannot be told apart; separate the file by tabs"
                )

    def _parse(
        self, block: bytes, blocks: Iterator[bytes], *, quoted: bool
    ) -> Iterator[tuple[str, list[str]]]:
        """Yields text and fields of the rows of a block, and of those after it that it needs.

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
        reader = csv.reader(lines(), strict=True, quoting=quoting, delimiter=self.separator[0])
        for fields in reader:
            yield "".join(taken), fields[:: len(self.separator)]
            taken.clear()
            if reader.line_num == last:
                return


class _Patterns:
    """What tells rows and fields in quotes apart, for a separator of one character."""

    def __init__(self, separator: str):
        by = re.escape(separator)
        self._empty = re.compile(rf'(?:"")?(?:{by}(?:"")?)*+\r?\n?'.encode())
        self.opening = re.compile(rf'(?:^|{by})"')
        field = rf'(?:"(?:[^"]++|"")*+"|[^"{by}\r\n]*+)'
        self.quoted_as_a_whole = re.compile(rf"{field}(?:{by}{field})*+\r?\n?")
        # Characters that stand before and after a field in quotes. Two quotes inside of a field
        # stand for one: the first seems to end the field, and the second to begin it again.
        self._before, self._after = _table(f'{separator}\n"'), _table(f'{separator}\r\n"')
        self._maybe_empty = _table(f"{separator}\r\n")  # as the first character of a line

    def are_fields_whole(self, block: bytes, line_ends: np.ndarray) -> bool:
        """Returns whether all quotes are around whole fields, without line ends inside."""
        quotes = _places(block, '"')
        if len(quotes) % 2 or (b"\r" in block and block.count(b"\r") != block.count(b"\r\n")):
            return False
        around = np.frombuffer(b"\n" + block + b"\n", np.uint8)  # places are one further
        before, after = around[quotes[::2]], around[quotes[1::2] + 2]
        return bool(
            self._before[before].all()
            and self._after[after].all()
            and not (np.searchsorted(quotes, line_ends) % 2).any()
        )

    def count(self, block: bytes, line_ends: np.ndarray) -> int:
        """Returns how many lines have a value, if no line ends inside of a field."""
        text = np.frombuffer(block, np.uint8)
        starts = np.append(0, line_ends + 1)
        starts = starts[starts < len(text)]
        second = starts[text[starts] == ord('"')] + 1
        quotes = text[second[second < len(text)]] == ord('"')
        if self._maybe_empty[text[starts]].any() or quotes.any():
            return sum(1 for line in io.BytesIO(block) if not self._empty.fullmatch(line))
        return len(starts)


def _table(characters: str) -> np.ndarray:
    """Returns bool[256]: whether a byte is one of the characters."""
    return np.isin(np.arange(256), list(characters.encode()))


def _places(block: bytes, character: str) -> np.ndarray:
    return np.flatnonzero(np.frombuffer(block, np.uint8) == ord(character))


_patterns = lru_cache(_Patterns)


def _open(source: Path | bytes) -> io.BufferedIOBase:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


def _is_compressed(source: Path | bytes) -> bool:
    with _open(source) as file:
        return file.read(4).startswith(COMPRESSED)


def _decompressed(source: Path | bytes) -> Iterator[bytes]:
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
