"""The command `pixelrec`: its list of programs, and what each costs before it starts."""

import sys

import pytest

from pixelrec_jax.__main__ import PROGRAMS
from pixelrec_jax.configs.checks import meaning
from pixelrec_jax.configs.datasets import DATASETS
from pixelrec_jax.configs.encoders import ENCODERS
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.configs.pixelrec import USERS
from pixelrec_jax.data.negatives import NEGATIVES
from pixelrec_jax.data.tasks import TASKS
from pixelrec_jax.losses import LOSSES
from pixelrec_jax.programs import list_choices
from pixelrec_jax.programs.list_choices import KINDS
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import UserError
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
def test_help_of_a_program_imports_nothing_heavy_and_hides_no_flag(name):
    program = f"""
import sys
from absl import flags
from pixelrec_jax.__main__ import main
sys.argv = ["pixelrec", *{name.split()!r}, "--help"]
try:
    main()
finally:
    print(*({set(_HEAVY)!r} & sys.modules.keys()), file=sys.stderr)
    # A flag belongs to the program or to the module that defined it for the program.
    modules = flags.FLAGS.flags_by_module_dict()
    print(*(name for name in modules if name.startswith("pixelrec_jax")), file=sys.stderr)
"""
    process = subprocesses.run([sys.executable, "-c", program], cwd=ROOT)
    assert (process.returncode, process.stderr.strip()) == (0, "")
    assert f"\npixelrec {name} " in process.stdout
    assert "flags:" in process.stdout


def test_a_program_takes_the_same_flags_as_a_module(tmp_path):
    options = ["--users=20", "--items=100", "--image_size=16"]
    assert command("toy", f"--out={tmp_path}/a", *options).returncode == 0
    argv = [sys.executable, "-m", PROGRAMS["toy"].module, f"--out={tmp_path}/b", *options]
    subprocesses.run(argv, cwd=ROOT, check=True)
    first, second = ((tmp_path / name / "interactions.csv").read_text() for name in "ab")
    assert first == second


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "keys"])
def test_what_a_config_can_name_is_listed_with_its_meaning(kind, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    list_choices.main(["list", kind])
    lines = capsys.readouterr().out.splitlines()
    registries = {
        "recommenders": USERS,
        "encoders": ENCODERS,
        "datasets": DATASETS,
        "tasks": TASKS,
        "losses": LOSSES,
        "negatives": NEGATIVES,
    }
    assert [line.split()[0] for line in lines] == list(registries[kind])
    assert all(len(line.split()) > 1 for line in lines)


def test_every_key_is_listed_with_its_meaning(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    list_choices.main(["list", "keys"])
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    for words in ("user=sasrec,item=vit_toy", "user=bert4rec,item=id,split=global_time"):
        for key in flatten(load_config(f"pixelrec:{words}").to_dict()):
            assert listed[key] == meaning(key)


def test_an_unknown_kind_is_refused():
    with pytest.raises(UserError, match="unknown 'encodrs'; did you mean 'encoders'"):
        list_choices.main(["list", "encodrs"])
