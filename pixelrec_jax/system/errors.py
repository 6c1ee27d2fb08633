"""Errors of users: a program ends on wrong input with one line and a non-zero exit code."""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging

from pixelrec_jax.system.foreign import clean_line, one_line


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


def reason(error: BaseException) -> str:
    """Returns the type and message of a library's error as one short line."""
    return f"{type(error).__name__}: {clean_line(str(error), width=300)}"


def ending(error: BaseException) -> tuple[str, int] | None:
    """Returns the message and exit code of an expected error, None for a fault of the program."""
    match error:
        case UserError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return "interrupted; start the same command again to continue", 130
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            where = clean_line(str(error.filename), width=300)
            return f"{error.strerror} ({where}); free disk space and start again", 2
    return None


def run(
    main: Callable[[Sequence[str]], Any],
    *,
    arguments: str | None = None,
    parse_flags: Callable[[Sequence[str]], list[str]] = flags.FLAGS,
) -> None:
    """Runs an absl program; a `UserError` or a wrong flag prints one line and exits.

    Args:
      main: the program.
      arguments: usage of its arguments beside flags, as in "DIR [DIR ...]", where at least one must
        be given; None if it takes none.
      parse_flags: parses the command line.
    """

    def guarded(argv: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries log every step of a checkpoint
        try:
            if arguments and len(argv) == 1:
                raise UserError(f"{arguments} is missing; see --help")
            if not arguments and len(argv) > 1:
                raise UserError(
                    f"unexpected argument {argv[1]!r}; options are given as --name=value"
                )
            main(argv)
        except (Exception, KeyboardInterrupt) as error:
            if (expected := ending(error)) is None:
                raise
            _exit(*expected)

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return parse_flags(argv)
        except flags.IllegalFlagValueError as error:
            # absl says "flag --out=None: Flag --out must have a value other than None."
            name, _, reason = str(error).partition("=None: ")
            missing = reason.endswith("must have a value other than None.")
            _exit(f"{name.removeprefix('flag ')} is missing; see --help" if missing else str(error))
        except (flags.Error, UserError) as error:
            _exit(str(error))

    app.run(guarded, flags_parser=parse)


def _exit(message: str, code: int = 2) -> NoReturn:
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
