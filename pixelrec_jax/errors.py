"""The one way a program of this package ends on wrong input: one line and a non-zero exit."""

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import app, flags


class UserError(Exception):
    """Wrong input; the message says what was given, what was expected and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the known name nearest to `name`, or lists them all."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=1)
    if matches:
        return f"; did you mean {matches[0]!r}?"
    return f"; known: {', '.join(sorted(known))}"


def run(main: Callable[[Sequence[str]], Any]) -> None:
    """Runs an absl program; a `UserError` and a bad flag print one line and exit with 2."""

    def guarded(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise UserError(
                    f"unexpected argument {argv[1]!r}; options are given as --name=value"
                )
            main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        print(f"error: {str(error).strip().splitlines()[0]}", file=sys.stderr)
        sys.exit(2)
