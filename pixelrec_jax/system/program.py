"""Programs: their flags, their help, and their end, which is one line on wrong input."""

import codecs
import io
import math
import os
import select
import shutil
import sys
import textwrap
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from absl import app, flags, logging

from pixelrec_jax.system import faults
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.foreign import one_line
from pixelrec_jax.system.storage import expand_user

flags.disclaim_key_flags()  # what the functions below define belongs to the program that calls them

CLOSED_PIPE = 128 + 13  # as a shell counts an end by SIGPIPE
_PLAIN = "pixelrec_jax.plain"  # the name of `_in_plain_characters` among Python's error handlers
_IN_ASCII = {"±": "+-", "…": "...", "─": "-", "━": "-", "╺": "-", "╸": "-", "×": "x", "·": "-"}
_HELP = ("--help", "-help", "--helpshort", "-helpshort", "-h", "-?")


class _PathParser(flags.ArgumentParser):
    """Takes a local path, in which ~ is the user's folder, or a URL."""

    syntactic_help = "a path or a URL"

    def parse(self, argument: str) -> str:
        """Returns the path with the user's folder in the place of ~."""
        return expand_user(argument)


class _FiniteParser(flags.FloatParser):
    """Takes a number that is not infinite and not NaN, which is within no bounds."""

    def convert(self, argument: int | float | str) -> float:
        """Returns the number; raises `ValueError` if it is not finite."""
        value = super().convert(argument)
        if not math.isfinite(value):
            raise ValueError(f"{argument} is not a finite number")
        return value


def define_path(
    name: str, default: str | None, help: str, *, required: bool = False
) -> flags.FlagHolder:
    """Defines a flag that is a path, in which ~ is the user's folder, or a URL."""
    return flags.DEFINE(_PathParser(), name, default, help, required=required)


def define_number(name: str, default: float, help: str, *, lower_bound: float) -> flags.FlagHolder:
    """Defines a flag that is a finite number."""
    return flags.DEFINE(_FiniteParser(lower_bound=lower_bound), name, default, help)


def run(
    main: Callable[[Sequence[str]], Any],
    *,
    arguments: str | None = None,
    define_flags: Callable[[], None] = lambda: None,
    parse_flags: Callable[[Sequence[str]], list[str]] = flags.FLAGS,
) -> None:
    """Runs a program; an expected error or a wrong flag prints one line and exits.

    Args:
      main: the program.
      arguments: usage of its arguments beside flags, which are paths, as in "DIR [DIR ...]", where
        at least one must be given; None if it takes none.
      define_flags: defines flags if that reads the command line, and so may fail, as for configs.
      parse_flags: parses the command line.
    """

    def checked(argv: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries log every step of a checkpoint
        if arguments and len(argv) == 1:
            raise UserError(f"{arguments} is missing; see --help")
        if not arguments and len(argv) > 1:
            raise UserError(f"unexpected argument {argv[1]!r}; options are given as --name=value")
        main([argv[0], *map(expand_user, argv[1:])])
        _flush()

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return parse_flags(argv)
        except flags.Error as error:  # which absl would print with the whole help
            raise UserError(_fault_of_flag(error)) from None

    own = sys.argv[1 : sys.argv.index("--")] if "--" in sys.argv else sys.argv[1:]
    with one_line_errors():
        define_flags()
        if set(own) & set(_HELP):
            print(_help())
        else:
            app.run(checked, flags_parser=parse)


@contextmanager
def one_line_errors() -> Generator[None]:
    """Ends the program with one line and an exit code when an expected error comes.

    Characters that the encoding of the output lacks are replaced. If the reader of a pipe goes
    away, as `head` does, the program ends there without a message.
    """
    codecs.register_error(_PLAIN, _in_plain_characters)
    for stream in _streams():
        stream.reconfigure(errors=_PLAIN)
    try:
        yield
        _flush()
    except flags.Error as error:
        _exit(_fault_of_flag(error))
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            _abandon(*_streams())
            sys.exit(CLOSED_PIPE)
        if (expected := faults.ending(error, _sizes())) is None:
            raise
        _exit(*expected)


def _help() -> str:
    """Returns what a program does and its flags, as wide as the terminal."""
    purpose = (sys.modules["__main__"].__doc__ or "").strip()
    width, lines = min(shutil.get_terminal_size().columns, 100), [purpose, "\nflags:"]
    for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
        text = f"--{flag.name}: {' '.join(str(flag.help).split())}"
        if flag.default not in (None, "", [], False):
            text += f" (default: {str(flag.default_as_str).strip(chr(39))})"
        lines.append(
            textwrap.fill(
                text,
                width,
                initial_indent="  ",
                subsequent_indent="      ",
                break_on_hyphens=False,
                break_long_words=False,
            )
        )
    return "\n".join(lines)


def _fault_of_flag(error: flags.Error) -> str:
    """Returns what is wrong with a flag, without the signs that absl puts before it."""
    text = str(error).strip().removeprefix("ERROR:: ").removeprefix("flag ")
    # absl says "flag --out=None: Flag --out must have a value other than None."
    name, _, why = text.partition("=None: ")
    missing = why.endswith("must have a value other than None.")
    return f"{name} is missing; see --help" if missing else text


def _sizes() -> dict[str, tuple[float, float]]:
    """Returns the flags that are whole numbers, each with its default."""
    given = flags.FLAGS.flags_by_module_dict().get(sys.argv[0], ())
    return {
        f"--{flag.name}": (flag.value, flag.default)
        for flag in given
        if type(flag.value) is int and type(flag.default) is int
    }


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    """Replaces what an encoding lacks by similar ASCII, or by "?"; an error handler of `codecs`."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(character, "?") for character in missing), error.end


def _nobody_reads() -> bool:
    """Returns whether a reader of our output has gone; other pipes are those of libraries."""
    poll = select.poll()
    for stream in _streams():
        poll.register(stream.fileno(), 0)  # errors are always reported
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush() -> None:
    """Prints what is left; Python would report a full disk at its end in its own way."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _streams() -> list[io.TextIOWrapper]:
    """Returns standard output and standard error, without those that a caller has closed."""
    return [x for x in (sys.stdout, sys.stderr) if isinstance(x, io.TextIOWrapper)]


def _abandon(*streams: TextIO) -> None:
    """Drops what these streams hold and get from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())


def _exit(message: str, code: int = 2) -> NoReturn:
    try:
        _flush()
    except OSError:  # it would be reported once more
        _abandon(*_streams()[:1])
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
