"""Reads interactions from a file of any supported format as codes of users and items, and times."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from pixelrec_jax.ingest import timestamps
from pixelrec_jax.ingest.columns import COLUMNS, Table
from pixelrec_jax.ingest.csv_file import CsvFile
from pixelrec_jax.ingest.table_file import (
    TableFile,
    as_text,
    find_columns,
    one_line_errors,
)
from pixelrec_jax.ingest.timestamps import FLOATS, INTEGERS, Timestamps
from pixelrec_jax.system.errors import UserError

# Control characters and ends of lines or paragraphs, which no id has.
CONTROL = "[\x00-\x1f\x7f-\x9f\u2028\u2029]"
_IDS = ("user_id", "item_id")


def read_interactions(
    path: Path, columns: Mapping[str, str] | None = None, *, unit: str = "auto"
) -> tuple[Table, Timestamps]:
    """Returns the interactions of a table with the columns item_id, user_id and timestamp.

    A CSV is scanned four times (count, user ids, item ids, codes) instead of held in memory, which
    takes 16 bytes a row (24 with floats or dates) plus the distinct ids.

    Args:
      path: a CSV, Parquet or Arrow file.
      columns: {our name: name in the file} where they differ; positions in a CSV without a header.
      unit: the unit of the timestamps, "auto" if it is to be recognised.

    Raises:
      UserError: the file is missing, empty, of another format or without the columns; or an id is
        empty or has a control character, a timestamp is not one or a row cannot be read, with the
        number of the line.
    """
    with one_line_errors(path, "interactions file"):
        file, names = find_columns(path, COLUMNS, columns or {})
        return _Reader(file, names).read(unit)


class _Reader:
    """Reads the columns of one file.

    Attributes:
      form: the form of its timestamps, told by the first of them or by their type.
    """

    def __init__(self, file: TableFile, names: dict[str, str]):
        self.file, self.names = file, names
        scan = file.scan()
        self.ids = as_text(scan, {name: names[name] for name in _IDS}, file.name)
        self.type = scan.collect_schema()[names["timestamp"]]
        self.time = pl.col(names["timestamp"])
        if self.type == pl.String:
            first = scan.select(self.time).drop_nulls().head(1).collect()
            self.form = timestamps.form_of(first.item() if first.height else "")
        elif (form := timestamps.form_of_type(self.type)) is not None:
            self.form = form
        else:
            raise UserError(
                f"{file.name}: timestamp is of type {str(self.type)[:100]}; give integers, floats, "
                "dates or text"
            )

    def read(self, unit: str) -> tuple[Table, Timestamps]:
        """Returns interactions and their times; raises `UserError`."""
        try:
            frame, ids = self._read_codes()
        except pl.exceptions.PolarsError:
            if not (bad := self._first_bad()):
                raise
            return self._read_as_floats(bad, unit)
        if sum(frame.null_count().row(0)) and (bad := self._first_bad()):
            return self._read_as_floats(bad, unit)
        frame = frame.drop_nulls()  # Blank lines only, as at the end of many files.
        self.file.check(frame.height, [self.names[name] for name in COLUMNS])
        if not frame.height:
            raise UserError(
                f"interactions file {self.file.name} has a header but no interactions; add some"
            )
        # The frame drops one column at a time, so that only the column being copied is held twice.
        # Timestamps may be divided in place.
        arrays = {
            name: frame.drop_in_place(name).to_numpy(writable=name == "timestamp")
            for name in COLUMNS
        }
        per_second = timestamps.ticks(self.type)
        times = timestamps.finish(arrays["timestamp"], self.form, unit, per_second=per_second)
        codes = arrays["user_id"], arrays["item_id"]
        return Table(*codes, times.values, ids["user_id"], ids["item_id"]), times

    def _read_as_floats(self, bad: Mapping[str, Any], unit: str) -> tuple[Table, Timestamps]:
        """Reads timestamps again if the first that is not an integer is a float, or raises."""
        if self.form == INTEGERS and timestamps.form_of(bad["timestamp"] or "") == FLOATS:
            self.form = FLOATS
            return self.read(unit)
        raise self._error(bad)

    def _read_codes(self) -> tuple[pl.DataFrame, dict[str, pl.Series]]:
        scan, times = self.file.scan(), self.time
        if isinstance(self.file, CsvFile) and self.form == INTEGERS:
            scan = self.file.scan(integers=[self.names["timestamp"]])  # faster than from text
        else:
            times = timestamps.values_of(times, self.type, self.form)
        ids = {}
        for name, column in zip(_IDS, self.ids, strict=True):
            first = scan.select(column).with_row_index("row").drop_nulls()
            first = first.group_by(name).agg(pl.col("row").min()).collect(engine="streaming")
            ids[name] = first.sort("row")[name]
            wrong = (ids[name] == "") | ids[name].str.contains(CONTROL)
            if wrong.any() and (bad := self._first_bad()):
                raise self._error(bad)
        codes = [
            column.cast(pl.Enum(ids[name])).to_physical().cast(pl.Int32)
            for name, column in zip(_IDS, self.ids, strict=True)
        ]
        frame = scan.select(*codes, times.alias("timestamp")).collect(engine="streaming")
        return frame, ids

    def _first_bad(self) -> dict[str, Any] | None:
        """Returns the first row with an id or a timestamp that cannot be one, None if all can.

        Its values are text; "row" is its number, which counts records and the header. Blank lines
        of a CSV are skipped.
        """
        time = timestamps.values_of(self.time, self.type, self.form)
        rows = self.file.scan().select(
            *self.ids,
            self.time.cast(pl.String).alias("timestamp"),
            time.is_null().alias("timeless"),
        )
        rows = rows.with_row_index("row", offset=self.file.first_row)
        if isinstance(self.file, CsvFile):
            rows = rows.filter(~pl.all_horizontal(pl.col(COLUMNS).is_null()))
        ids = [pl.col(name).fill_null("") for name in _IDS]
        bad = [(column == "") | column.str.contains(CONTROL) for column in ids]
        rows = rows.filter(pl.any_horizontal(*bad, "timeless")).head(1)
        try:
            return next(iter(rows.collect(engine="streaming").to_dicts()), None)
        except pl.exceptions.PolarsError:
            return None  # not readable as text either: the caller reports the first error of polars

    def _error(self, bad: Mapping[str, Any]) -> UserError:
        where = f"{self.file.name} {self.file.row} {bad['row']}"
        for name in ("item_id", "user_id"):
            value = bad[name] or ""
            if not value:
                return UserError(f"{where}: {name} is empty; every interaction needs one")
            if wrong := pl.Series([value]).str.extract(f"({CONTROL})").item():
                return UserError(
                    f"{where}: {name} {value[:60]!r} has the control character "
                    f"U+{ord(wrong):04X}; take it out"
                )
        value = bad["timestamp"] or ""
        return UserError(
            f"{where}: timestamp {value[:60]!r} is not {timestamps.EXPECTED[self.form]}; every "
            "interaction needs one"
        )
