"""Commands of other programs, which are run or printed as a shell script."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from absl import flags

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.program import run as run_program

flags.disclaim_key_flags()  # what the functions below define belongs to the calling launcher

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and the text for its standard input, which ends a line."""

    argv: tuple[str, ...]
    stdin: str = ""

    def __str__(self) -> str:
        """Returns the command in one line, as bash reads it."""
        return shell_line(self.argv)


def shell_line(argv: Iterable[str]) -> str:
    """Returns a command as bash reads it, without line ends and other control characters."""
    return " ".join(map(_quoted, argv))


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    escaped = (
        f"\\{letter}" if letter in "\\'" else letter if letter.isprintable() else _escape(letter)
        for letter in word
    )
    return f"$'{''.join(escaped)}'"


def _escape(letter: str) -> str:
    # By bytes: bash writes \u in the encoding of its locale.
    return "".join(f"\\{byte:03o}" for byte in letter.encode())


def script(commands: Iterable[Command]) -> str:
    """Returns a script of bash that runs these commands until one fails."""
    return " &&\n".join(map(_with_input, commands))


def _with_input(command: Command) -> str:
    if not command.stdin:
        return str(command)
    lines = command.stdin.split("\n")
    assert not lines.pop(), "a here-document ends with a line"
    end = "END"
    while end in lines:
        end += "_"
    # In braces, so that what follows the command stands after the text.
    return f"{{ {command} <<'{end}'\n{command.stdin}{end}\n}}"


def execute(jobs: Mapping[str, Iterable[Command]], *, dry_run: bool) -> None:
    """Runs the commands of all jobs in order, or prints them as a shell script.

    A job ends at its first failing command; the other jobs continue.

    Raises:
      UserError: commands failed, or a program is not installed.
    """
    failed = []
    for name, commands in jobs.items():
        if dry_run:
            _print_exactly(script(commands))
            continue
        for command in commands:
            if code := run(command):
                failed.append(f"{name} ({command.argv[0]} ended with {code})")
                break
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} failed: {', '.join(failed)}; see above")


def _print_exactly(text: str) -> None:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{error.object[error.start]!r} in the script cannot be printed in {error.encoding}; "
            "set PYTHONUTF8=1"
        ) from None
    print(text)


def run(command: Command) -> int:
    """Prints a command, runs it to its end and returns its exit code.

    Raises:
      UserError: the program is not installed.
    """
    print(f"+ {command}", file=sys.stderr, flush=True)
    try:
        # Without `stdin` the command has the terminal, so that gcloud and ssh can ask questions.
        text = command.stdin.encode() or None
        return subprocess.run(command.argv, check=False, input=text).returncode
    except FileNotFoundError:
        raise UserError(
            f"{command.argv[0]} is not installed on this machine, or not in PATH; install it, or "
            "print the commands with --dry_run"
        ) from None


def program(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an absl program that takes the flags of a run after "--"."""
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    of_run = arguments[end + 1 :]

    def parse(argv: Sequence[str]) -> list[str]:
        for argument in argv:
            if not _is_utf8(argument):
                raise UserError(f"{argument!a} is not UTF-8, which other machines need; change it")
        try:
            return flags.FLAGS(argv[: end + 1])
        except flags.UnrecognizedFlagError as error:
            raise UserError(f"{error}; flags of the run come after --") from None

    run_program(lambda _: main(of_run), parse_flags=parse)


def _is_utf8(text: str) -> bool:
    # Python decodes other bytes of the command line to lone surrogates.
    return text.encode(errors="ignore").decode() == text


def environment() -> dict[str, str]:
    """Returns the variables that --env sets, by name.

    Raises:
      UserError: a variable is malformed, or given twice.
    """
    variables: dict[str, str] = {}
    for given in flags.FLAGS.env:
        name, equals, value = given.partition("=")
        if not equals or not _NAME.fullmatch(name):
            raise UserError(f"--env={given} is malformed; give NAME=VALUE, as in --env=TZ=UTC")
        if name in variables:
            raise UserError(f"--env sets {name} twice; give each variable once")
        variables[name] = value
    return variables


def define_extra_flag(of: str, example: str) -> None:
    """Defines --extra: further options for a command of the launcher."""
    flags.DEFINE_multi_string("extra", [], f"another option of {of}, as in {example}")
    flags.register_validator(
        "extra",
        lambda options: all(option.startswith("-") for option in options),
        f"expected options with their dashes, as in {example}",
    )


def define_common_flags() -> None:
    """Defines the flags that all launchers have."""
    flags.DEFINE_list(
        "sweep",
        [],
        "one run for each of these item encoders, id among them; figure9 stands for those of the "
        "paper's Figure 9. "
        "Leave out item= in --config; each run has the folder <workdir>/<encoder>",
    )
    flags.DEFINE_multi_string("env", [], "environment variable of the run, as NAME=VALUE")
    flags.DEFINE_bool("dry_run", False, "print the commands as a shell script, and run nothing")
