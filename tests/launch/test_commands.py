"""What --dry_run prints, run by bash, is what would run, whatever the values are."""

import json
import os
import sys

import pytest

from pixelrec_jax.launch.commands import Command, script, shell_line
from tests import subprocesses
from tests.launch.lines import GKE, RUN, SLURM, TPU
from tests.tiny import ROOT

# One run of each launcher has all of them, as the values of as many variables.
NASTY = (
    "",
    "plain",
    "a\nb",
    "\nEND\n",
    "END\nEND_\nEND__",
    "' && echo no #",
    '"$HOME" `id` $(id) \\',
    "\\n\\x41 $'\\n' %s %%",
    "\t\r\x01\x1b[31m\x7f",
    "\x0123",  # digits after an escape
    "ä漢🙂\u202e\u2028\u0085",
    "--flag=x\n# y",
    "*? ~ [a-z] {a,b} !! $$ $(HOME)",
)
VARIABLES = {f"V{number}": value for number, value in enumerate(NASTY)}
ENV = [f"--env={name}={value}" for name, value in VARIABLES.items()]
FLAG = [f"--config.warm_start.run=gs://b/{''.join(NASTY)}"]


def said(fakes, text: str, locale: str = "C.UTF-8") -> list:
    """The calls that a script of bash makes."""
    process = fakes.run("bash", "-c", text, LC_ALL=locale)
    assert process.returncode == 0, process.stderr
    return fakes.calls()


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_line_of_bash_is_the_command_for_every_value(fakes, locale):
    fakes.add("show")
    argv = ["show", *NASTY, "".join(NASTY)]
    line = shell_line(argv)
    assert line.isprintable()
    assert said(fakes, line, locale) == [(argv, "")]
    assert said(fakes, f"# {line}", locale) == []


def test_a_script_gives_commands_their_input_and_ends_at_the_first_that_fails(fakes):
    fakes.add("show")
    fakes.add("fail", code=3)
    texts = [f"{value}\n" for value in NASTY]
    commands = [Command(("show", text), text) for text in texts]
    expected = [(["show", text], text) for text in texts]
    assert said(fakes, script(commands)) == expected
    failing = [commands[0], Command(("fail",), "END\n"), commands[1]]
    process = fakes.run("bash", "-c", script(failing))
    assert process.returncode == 3
    assert fakes.calls() == [expected[0], (["fail"], "END\n")]


@pytest.mark.parametrize("line", [GKE, SLURM, [*TPU, "--do=create"], [*TPU, "--do=run"]])
def test_the_printed_script_does_what_the_launcher_does_with_every_value(fakes, line):
    for name in ("sbatch", "kubectl", "gcloud", "git", "sh", "mkdir"):
        fakes.add(name)
    run = [*ENV, "--sweep=swin_t,clip_vit_b32", *RUN[:-1], *FLAG]
    process = fakes.launch(*line, *run)
    assert process.returncode == 0, process.stderr
    assert all(text.isprintable() for text in process.stderr.splitlines())
    ran = fakes.calls()
    assert ran
    assert said(fakes, fakes.launch(*line, "--dry_run", *run).stdout) == ran


def test_a_local_run_gets_its_variables_and_flags_whether_printed_or_started(fakes, tmp_path):
    # A program in the place of Python, which writes down what it gets.
    show = tmp_path / "python"
    names = list(VARIABLES)
    show.write_text(
        f"#!{sys.executable} -SE\nimport json, os, sys\n"
        f"print(json.dumps([sys.argv[1:], [os.environ[name] for name in {names!r}]]))\n"
    )
    show.chmod(0o755)
    run = [*ENV, *RUN[:-1], *FLAG]
    program = (
        "import sys; from pixelrec_jax.launch import local\n"
        f"sys.executable = {str(show)!r}\n"
        "local.define_flags(); local.program(local.main)"
    )
    start = [sys.executable, "-c", program, *run]
    started = subprocesses.run(start, check=True).stdout
    assert json.loads(started) == [
        ["-m", "pixelrec_jax", "train", *RUN[1:-1], *FLAG],
        list(NASTY),
    ]
    printed = subprocesses.run([start[0], "-c", program, "--dry_run", *run], check=True).stdout
    assert subprocesses.run(["bash", "-c", printed], check=True).stdout == started


def test_a_job_of_slurm_has_the_variables(fakes, tmp_path):
    fakes.add("sbatch")
    fakes.launch(*SLURM, *ENV, *RUN)
    ((_, batch),) = fakes.calls()
    srun = tmp_path / "bin" / "srun"
    srun.write_text(
        f"#!{sys.executable} -SE\nimport json, os\n"
        f"print(json.dumps([os.environ[name] for name in {list(VARIABLES)!r}]))\n"
    )
    srun.chmod(0o755)
    process = fakes.run("bash", "-c", batch)
    assert json.loads(process.stdout) == list(NASTY)


def test_a_script_that_the_output_cannot_hold_is_refused():
    argv = [sys.executable, "-m", "pixelrec_jax", "launch", "slurm", "--dry_run", "--env=A=ä", *RUN]
    plain = {"PYTHONIOENCODING": "ascii"}
    process = subprocesses.run(argv, cwd=ROOT, env=os.environ | plain)
    assert (process.returncode, process.stdout) == (2, "")
    assert "cannot be printed in ascii; set PYTHONUTF8=1" in process.stderr
    plain = {"LC_ALL": "C", "PYTHONUTF8": "1"}
    process = subprocesses.run(argv, cwd=ROOT, env=os.environ | plain, check=True)
    assert "export A='ä'" in process.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--env=A"], "--env=A is malformed; give NAME=VALUE"),
        (["--env=1A=x"], "--env=1A=x is malformed"),
        (["--env=A=1", "--env=A=2"], "--env sets A twice"),
        (["--env=A=" + os.fsdecode(b"\xff")], "is not UTF-8"),
    ],
)
@pytest.mark.parametrize("line", [GKE, SLURM, [*TPU, "--do=run"], ["local", "--dry_run"]])
def test_variables_that_cannot_be_are_one_line(fakes, line, options, message):
    for name in ("sbatch", "kubectl", "gcloud"):
        fakes.add(name)
    process = fakes.launch(*line, *options, *RUN)
    assert process.returncode == 2
    (error,) = process.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert not fakes.calls()
