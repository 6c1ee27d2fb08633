"""Timestamps of tables: integers, numbers and dates become int64 in a unit that is told."""

import re
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from pixelrec_jax.data.time_units import ORDER, OTHER, UNITS
from pixelrec_jax.system.errors import UserError

Form = Literal["integers", "floats", "dates"]
INTEGERS: Form = "integers"
FLOATS: Form = "floats"
DATES: Form = "dates"
# What a value that cannot be read is not.
EXPECTED = {
    INTEGERS: "an integer (64 bit)",
    FLOATS: "a finite number up to 2^53, below which floats are exact",
    DATES: "a date such as 2018-09-20 or 2018-09-20T17:05:00Z",
}
_INTEGER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)
_FLOAT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DATE = (
    r"^\d{4}-\d\d-\d\d"
    r"(?:[T ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,6}0*)?)?"
    r" ?(?:Z|UTC|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?)?$"
)
_MICRO = 10**6  # microseconds of a second
_EXACT = 2.0**53  # floats up to here are exact integers
_ROWS = 5_000_000  # converted at once
# Seconds from 1970 to 1990-01-01, and to the last second of a signed int32, in 2038.
_EPOCH_SECONDS = (631_152_000, 2**31 - 1)


class Timestamps(NamedTuple):
    """Timestamps of a table.

    Attributes:
      values: int64[rows], in `unit`.
      unit: one of `UNITS`, or `OTHER` or `ORDER`.
      form: how they stood in the file: "integers", "floats" or "dates".
    """

    values: np.ndarray
    unit: str
    form: Form


def form_of(value: str) -> Form:
    """Returns the form that a text has, by which all timestamps of its column are then read."""
    if _INTEGER.fullmatch(value):
        return INTEGERS
    if _FLOAT.fullmatch(value):
        return FLOATS
    return DATES if re.match(r"\d{4}-", value) else INTEGERS


def form_of_type(dtype: pl.DataType) -> Form | None:
    """Returns the form of a column that is not text, None for a type that cannot be a time."""
    if dtype.is_integer():
        return INTEGERS
    if dtype.is_float():
        return FLOATS
    return DATES if isinstance(dtype, pl.Date | pl.Datetime) else None


def values_of(column: pl.Expr, dtype: pl.DataType, form: Form) -> pl.Expr:
    """Returns timestamps as they are collected, null where one cannot be read.

    They are int64, for floats float64; dates are in microseconds since 1970, or in nanoseconds for
    a type that has them (see `ticks`).
    """
    if form == INTEGERS:
        return column.cast(pl.Int64, strict=False)
    if form == FLOATS:
        value = column.cast(pl.Float64, strict=False)
        return pl.when(value.abs() <= _EXACT).then(value)  # not NaN
    if dtype == pl.String:
        return _of_text(column)
    ticks_of = "ns" if ticks(dtype) > _MICRO else "us"
    return column.cast(pl.Datetime(ticks_of)).dt.timestamp(ticks_of)


def ticks(dtype: pl.DataType) -> int:
    """Returns how many units a second has in which dates of a type are collected."""
    return _MICRO * 1000 if getattr(dtype, "time_unit", None) == "ns" else _MICRO


def _of_text(text: pl.Expr) -> pl.Expr:
    """Returns microseconds since 1970; a date is its first moment, and UTC holds without a zone."""

    def number(part: pl.Expr) -> pl.Expr:
        return part.cast(pl.Int64, strict=False).fill_null(0)

    date = text.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64)
    rest = text.str.slice(16)  # of seconds, fraction and zone
    fraction = rest.str.extract(r"^:\d\d[.,](\d{1,6})").str.pad_end(6, "0")
    zone = rest.str.extract(r"([+-]\d\d:?\d\d)$")
    offset = 60 * number(zone.str.slice(1, 2)) + number(zone.str.slice(-2))
    minutes = 60 * number(text.str.slice(11, 2)) + number(text.str.slice(14, 2))
    minutes -= pl.when(zone.str.starts_with("-")).then(-offset).otherwise(offset)
    seconds = 86_400 * date + 60 * minutes + number(rest.str.slice(1, 2))
    return pl.when(text.str.contains(_DATE)).then(seconds * _MICRO + number(fraction))


def recognise_unit(timestamps: np.ndarray) -> str:
    """Returns the unit in which timestamps [rows] count from 1970, or "other".

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


def finish(values: np.ndarray, form: Form, unit: str, *, per_second: int) -> Timestamps:
    """Returns timestamps of at least one row.

    Args:
      values: int64[rows] or, of floats, float64[rows].
      form: see `Timestamps`.
      unit: that which the user gives, or "auto".
      per_second: how many units of `values` a second has, if they are dates.

    Raises:
      UserError: `unit` is not that of dates, or floats have fractions of an unknown unit.
    """
    if form == DATES:
        values, exact = _coarsest(values, per_second)
        if unit not in ("auto", ORDER, exact):
            raise UserError(
                f"--timestamp_unit={unit}, but timestamps are dates, kept in {exact}; leave it out"
            )
        return Timestamps(values, exact if unit == "auto" else unit, form)
    unit = recognise_unit(values) if unit == "auto" else unit
    if form == INTEGERS:
        return Timestamps(values, unit, form)
    return Timestamps(*_whole(values, unit), form)


def _coarsest(values: np.ndarray, per_second: int) -> tuple[np.ndarray, str]:
    """Returns dates int64[rows] in the coarsest unit, up to seconds, that keeps them; and the unit.

    `per_second` is the number of units of the given dates in a second.
    """
    for unit in ("seconds", "milliseconds", "microseconds"):
        factor = per_second * UNITS[unit] // UNITS["seconds"]
        blocks = [values[start : start + _ROWS] for start in range(0, len(values), _ROWS)]
        if not any((block % factor).any() for block in blocks):
            return values // factor, unit
    return values, "nanoseconds"


def _whole(values: np.ndarray, unit: str) -> tuple[np.ndarray, str]:
    """Returns floats as int64, and their unit, which is finer if they have fractions."""
    if (np.trunc(values) == values).all():
        return values.astype(np.int64), unit
    finer = [name for name in ("milliseconds", "microseconds") if UNITS[name] < UNITS.get(unit, 0)]
    for name in finer:
        factor = UNITS[unit] // UNITS[name]
        whole = np.rint(values * factor)
        exact = name == finer[-1] or (whole / factor == values).all()
        if exact and np.abs(whole).max() <= _EXACT:
            return whole.astype(np.int64), name
    known = "of a unit that was not recognised" if unit in (OTHER, ORDER) else f"of {unit}"
    raise UserError(
        f"timestamps have fractions {known}, such as {float(values[np.trunc(values) != values][0])}"
        "; give --timestamp_unit=seconds or another unit above microseconds, or write whole numbers"
    )
