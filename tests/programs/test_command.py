"""The command `pixelrec`: its list of programs, and what each costs before it starts."""

import sys

import pytest

from pixelrec_jax.__main__ import PROGRAMS
from tests import subprocesses
from tests.tiny import ROOT

_HEAVY = ("jax", "flax", "orbax", "grain", "polars")


def command(*arguments):
    return subprocesses.run([sys.executable, "-m", "pixelrec_jax", *arguments], cwd=ROOT)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["launch"], ["launch", "--help"]])
def test_programs_are_listed(arguments):
    process = command(*arguments)
    assert (process.returncode, process.stderr) == (0, "")
    listed = [line for line in process.stdout.splitlines() if line.startswith("  ")]
    launchers = [name for name in PROGRAMS if name.startswith("launch ")]
    expected = launchers if "launch" in arguments else list(PROGRAMS)
    assert [line[2:16].strip() for line in listed] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown program 'trian'; did you mean 'train'?"),
        (["launch", "slrum"], "unknown program 'launch slrum'; did you mean 'launch slurm'?"),
        (["--workdir=runs"], "unknown program '--workdir=runs'; known: analyze, "),
    ],
)
def test_an_unknown_program_is_one_line(arguments, message):
    process = command(*arguments)
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {message}")
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_of_a_program_imports_nothing_heavy(name):
    program = f"""
import sys
from pixelrec_jax.__main__ import main
sys.argv = ["pixelrec", *{name.split()!r}, "--help"]
try:
    main()
finally:
    print(*({set(_HEAVY)!r} & sys.modules.keys()), file=sys.stderr)
"""
    process = subprocesses.run([sys.executable, "-c", program], cwd=ROOT)
    assert process.stderr.strip() == ""
    assert f"\npixelrec {name} " in process.stdout
    assert "flags:" in process.stdout


def test_a_program_takes_the_same_flags_as_a_module(tmp_path):
    options = ["--users=20", "--items=100", "--image_size=16"]
    assert command("toy", f"--out={tmp_path}/a", *options).returncode == 0
    argv = [sys.executable, "-m", PROGRAMS["toy"].module, f"--out={tmp_path}/b", *options]
    subprocesses.run(argv, cwd=ROOT, check=True)
    first, second = ((tmp_path / name / "interactions.csv").read_text() for name in "ab")
    assert first == second
