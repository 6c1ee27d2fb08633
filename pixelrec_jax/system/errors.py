"""Errors of users: a program ends on wrong input with one line and a non-zero exit code."""

import difflib
from collections.abc import Iterable

from pixelrec_jax.system.foreign import clean_line, one_line
from pixelrec_jax.system.redact import redact


class UserError(Exception):
    """Wrong input; the message says what was given, what was expected and what to do.

    The message may hold foreign text: it is made one visible line of bounded length.
    """

    exit_code = 2

    def __init__(self, message: str):
        super().__init__(one_line(message))


class TransientError(UserError):
    """An error that may pass, such as a failure of the network; the message is as in `UserError`.

    Launchers restart programs that exit with 1.
    """

    exit_code = 1


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the known name nearest to `name`, or lists all names.

    The last word of a dotted name also counts as its name: "lr" is near "optim.lr".
    """
    known = list(known)
    spellings = {full.rpartition(".")[2]: full for full in known} | {full: full for full in known}
    if matches := difflib.get_close_matches(name, spellings, n=1):
        return f"; did you mean {spellings[matches[0]]!r}?"
    return f"; known: {', '.join(sorted(known))}"


def nearest_key(key: str, known: Iterable[str]) -> str:
    """Returns what to say about an unknown dotted key: the nearest one, and its own section."""
    known = list(known)
    section = key.rpartition(".")[0]
    names = [full.removeprefix(f"{section}.") for full in known if full.startswith(f"{section}.")]
    matches = nearest(key, known)
    said = "" if "; known:" in matches else matches
    if section and names:
        return f"{said}; {section} has {', '.join(sorted(names))}"
    sections = sorted({full.partition(".")[0] for full in known})
    return said or f"; its sections and keys are {', '.join(sections)}"


def reason(error: BaseException) -> str:
    """Returns the type and message of a library's error as one short line."""
    return f"{type(error).__name__}: {clean_line(redact(str(error)), width=300)}"
