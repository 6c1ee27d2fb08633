"""How programs end: paths, pipes, encodings, and faults of the machine."""

import errno
import os
import sys
from pathlib import Path

import pytest

from pixelrec_jax.system import faults
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.tiny import ROOT

_START = """
import sys
from absl import flags
from pixelrec_jax.system import program
"""


def python(code, *arguments, **options):
    return subprocesses.run([sys.executable, "-c", _START + code, *arguments], cwd=ROOT, **options)


_PRINTS_OUT = """
program.define_path("out", None, "folder", required=True)
program.define_number("rate", 1.0, "a second", lower_bound=0.1)
program.run(lambda argv: print(flags.FLAGS.out, *argv[1:]), arguments="DIR [DIR ...]")
"""


def test_paths_of_flags_and_arguments_expand_the_users_folder():
    done = python(_PRINTS_OUT, "--out=~/a", "~/b", "gs://c/~")
    home = str(Path.home())
    assert done.stdout.split() == [f"{home}/a", f"{home}/b", "gs://c/~"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "--out is missing; see --help"),
        (["--out=a"], "DIR [DIR ...] is missing; see --help"),
        (["--out=a", "--rate=nan", "x"], "--rate=nan: nan is not a finite number"),
        (["--out=a", "--rate=inf", "x"], "--rate=inf: inf is not a finite number"),
        (["--out=a", "--rate=0.01", "x"], "--rate=0.01: 0.01 is not number >= 0.1"),
        (["--flagfile=/nowhere"], "Unable to open flagfile: [Errno 2] No such file"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, message):
    done = python(_PRINTS_OUT, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_says_everything_and_succeeds(flag):
    done = python(_PRINTS_OUT, flag, env=os.environ | {"COLUMNS": "40"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "--rate: a second (default: 1.0)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 40


_PRINTS_MUCH = """
program.run(lambda _: print("27.88 ±1.76 ─ 日\\n" * 10_000))
"""


def test_characters_that_the_output_lacks_are_replaced():
    done = python(_PRINTS_MUCH, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("27.88 +-1.76 - ?\n")


def test_a_closed_pipe_ends_the_program_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        done = python(_PRINTS_MUCH, stdout=nobody)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_at_the_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = python(_PRINTS_MUCH, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device; free disk space and start again\n"


def test_an_unknown_error_keeps_its_traceback():
    done = python("program.run(lambda _: [][0])")
    assert done.returncode == 1
    assert "IndexError" in done.stderr


def test_a_backend_that_cannot_start_is_one_line():
    code = "def main(_):\n  import jax\n  jax.devices()\nprogram.run(main)"
    done = python(code, env=os.environ | {"JAX_PLATFORMS": "cuda"})
    assert done.returncode == 2
    assert "error: JAX cannot start its devices (JAX_PLATFORMS='cuda'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(errno.EACCES, "", "a/b"), "a/b: Permission denied; change the perm"),
        (OSError(errno.EROFS, "", "a"), "a: Read-only file system; the file system cannot be"),
        (OSError(errno.EMFILE, "", "a"), "a: Too many open files; allow more"),
        (OSError(errno.ENOSPC, ""), "No space left on device; free disk space"),
        (RuntimeError("write: No space left on device (os error 28)"), "RuntimeError: write: No"),
        (ValueError("x: Permission denied"), "ValueError: x: Permission denied: Permission denied"),
    ],
)
def test_faults_of_the_machine_say_what_to_do(error, message):
    ending = faults.ending(error)
    assert ending is not None
    assert ending[0].startswith(message)
    assert ending[1] == 2


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (MemoryError("Unable to allocate 745. GiB for an array with shape (1,)"), "745 GiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 3221225472 bytes."), "3.0 GiB"),
    ],
)
def test_out_of_memory_names_the_option_that_is_too_large(error, size):
    sizes = {"width": (1024, 512), "negatives.count": (100_000, 1), "train.epochs": (0, 200)}
    message, _ = faults.ending(error, sizes)
    assert message.startswith(f"out of memory: {size} were asked for at once; negatives.count=100")
    assert isinstance(faults.out_of_memory(MemoryError(), {}), UserError)


def test_other_errors_of_libraries_are_not_taken_for_faults_of_the_machine():
    for error in (RuntimeError("INTERNAL: a bug"), ValueError("shape"), OSError("no number")):
        assert faults.ending(error) is None
