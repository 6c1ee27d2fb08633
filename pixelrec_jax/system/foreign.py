"""Text from files and servers of others, made harmless before it is printed or written.

All foreign text that reaches a terminal, a log or a CSV goes through one of these functions: the
message of a `UserError` through `one_line`, cells of tables and lines of progress through `visible`
(see `console.PlainConsole`), cells of CSV files through `csv_cell`.
"""

import re

from pixelrec_jax.system.redact import redact

_LONGEST_MESSAGE = 3000
_LONGEST_CELL = 4000
_TAIL = 1000  # of a message that is cut: its end says what to do
# A spreadsheet runs what begins so; numbers are left as they are.
_FORMULA = re.compile(r"[=+\-@](?!\d+(\.\d+)?$)")


def visible(text: str) -> str:
    """Returns a text of the same length where each character that does not print is a space.

    These are control characters, escapes, ends of lines, marks of direction and halves of
    surrogate pairs.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def clean_line(text: str | None, *, width: int) -> str:
    """Returns a text as one line of at most `width`, without repeated spaces."""
    line = " ".join(visible(text or "").split())
    return line if len(line) <= width else line[: width - 1] + "…"


def one_line(message: str) -> str:
    """Returns a message as one visible line without secrets; a long one is cut in the middle."""
    line = visible(redact(message)).strip()
    if len(line) <= _LONGEST_MESSAGE:
        return line
    return f"{line[: _LONGEST_MESSAGE - _TAIL - 3]} … {line[-_TAIL:]}"


def csv_cell(value: object) -> str:
    """Returns a cell of a CSV file; an apostrophe stands before what a spreadsheet would run."""
    cell = visible(str(value)).strip()
    cell = cell if len(cell) <= _LONGEST_CELL else cell[: _LONGEST_CELL - 1] + "…"
    return f"'{cell}" if _FORMULA.match(cell) else cell
