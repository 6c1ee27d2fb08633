"""Columns by name: which column of a file is which of ours."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from pixelrec_jax.system.errors import UserError, nearest

# RecBole writes the type of a column after its name.
_TYPED = re.compile(r"(.+):(?:token|float)(?:_seq)?")
_SHOWN = 20  # columns that a message lists


def parse(words: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """Returns {our name: name in the file} of the words of --columns, as in item_id=article_id.

    Raises:
      UserError: a word is not of this form, names a column that is not in `known` or one twice, or
        some are positions and others names.
    """
    names: dict[str, str] = {}
    for word in words:
        ours, _, theirs = word.partition("=")
        if ours not in known:
            hint = nearest(ours, known)
            raise UserError(f"--columns={word[:100]}: {ours[:50]!r} is not one of ours{hint}")
        if not theirs or ours in names:
            raise UserError(f"--columns needs {ours}=NAME once, with a column of the file")
        names[ours] = theirs
    return names


def are_positions(names: Mapping[str, str]) -> bool:
    """Returns whether columns are given by position, as numbers from 1: the file has no header.

    Raises `UserError` if only some are.
    """
    numbers = [re.fullmatch(r"[1-9]\d{0,3}", name, re.ASCII) is not None for name in names.values()]
    if any(numbers) and not all(numbers):
        given = ",".join(f"{ours}={theirs}" for ours, theirs in names.items())
        raise UserError(
            f"--columns={given[:200]}: give positions, of a file without a header, or names for all"
        )
    return any(numbers)


def plain_name(name: str) -> str:
    """Returns the name of a column without RecBole's type: user_id:token is user_id."""
    match = _TYPED.fullmatch(name)
    return match[1] if match else name


def find(
    columns: Sequence[str], wanted: Sequence[str], given: Mapping[str, str], file: str
) -> dict[str, str]:
    """Returns {our name: name in the file} of the wanted columns.

    Args:
      columns: the names of the columns of the file.
      wanted: our names.
      given: {our name: name in the file} for columns with other names.
      file: what messages call the file.

    Raises:
      UserError: a column is not there, with those that are.
    """
    there = {plain_name(name): name for name in reversed(columns)} | {n: n for n in columns}
    theirs = {ours: given.get(ours, ours) for ours in wanted}
    missing = {ours: name for ours, name in theirs.items() if name not in there}
    if missing:
        listed = ", ".join(name[:40] for name in columns[:_SHOWN])
        more = f" and {len(columns) - _SHOWN:,} more" if len(columns) > _SHOWN else ""
        raise UserError(
            f"{file} has no column {', '.join(missing.values())}; it has {listed}{more}; "
            f"{_advice(missing, given, there)}"
        )
    found = {ours: there[name] for ours, name in theirs.items()}
    if len(set(found.values())) < len(found):
        raise UserError(f"--columns names one column of {file} twice; give each its own")
    return found


def _advice(missing: Mapping[str, str], given: Mapping[str, str], there: Iterable[str]) -> str:
    ours, theirs = next(iter(missing.items()))
    if ours in given:
        near = difflib.get_close_matches(theirs, there, n=1)
        return f"did you mean --columns={ours}={near[0]}?" if near else "mend --columns"
    return (
        f"give the names with --columns, as in --columns={ours}=NAME, or positions if there is not "
        f"a header, as in --columns={ours}=1"
    )
