"""Commands of other programs, which are run or printed as a shell script."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from absl import flags

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.program import run as run_program

_END = "END"


@dataclass(frozen=True)
class Command:
    """A program with its arguments, and the text for its standard input."""

    argv: tuple[str, ...]
    stdin: str = ""

    def __str__(self) -> str:
        """Returns the command in the form of a shell."""
        line = shlex.join(self.argv)
        return f"{line} <<'{_END}'\n{self.stdin}{_END}" if self.stdin else line


def execute(jobs: Mapping[str, Iterable[Command]], *, dry_run: bool) -> None:
    """Runs the commands of all jobs in order, or prints them as a shell script.

    A job ends at its first failing command; the other jobs continue.

    Raises:
      UserError: commands failed, or a program is not installed.
    """
    failed = []
    for name, commands in jobs.items():
        if dry_run:
            print(" && \\\n".join(map(str, commands)))
            continue
        for command in commands:
            if code := run(command):
                failed.append(f"{name} ({command.argv[0]} ended with {code})")
                break
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} failed: {', '.join(failed)}; see above")


def run(command: Command) -> int:
    """Prints a command, runs it to its end and returns its exit code.

    Raises:
      UserError: the program is not installed.
    """
    print(f"+ {shlex.join(command.argv)}", file=sys.stderr, flush=True)
    try:
        # Without `stdin` the command has the terminal, so that gcloud and ssh can ask questions.
        text = command.stdin or None
        return subprocess.run(command.argv, check=False, input=text, text=True).returncode
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
        try:
            return flags.FLAGS(argv[: end + 1])
        except flags.UnrecognizedFlagError as error:
            raise UserError(f"{error}; flags of the run come after --") from None

    run_program(lambda _: main(of_run), parse_flags=parse)


def define_extra_flag(of: str, example: str) -> None:
    """Defines --extra: further options for a command of the launcher."""
    flags.DEFINE_multi_string("extra", [], f"another option of {of}, as in {example}; repeatable")
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
        "one run for each of these encoders; figure9 stands for those of the paper's Figure 9. "
        "Leave out item= in --config; each run has the folder <workdir>/<encoder>",
    )
    flags.DEFINE_bool("dry_run", False, "print the commands as a shell script, and run nothing")
    for name in ("sweep", "dry_run"):  # so that --help of the program lists them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
