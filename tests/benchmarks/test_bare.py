"""Benchmarks that run on a bare machine, with few packages and no data."""

import json
import sys

import pytest

from tests import subprocesses
from tests.tiny import ROOT

# jaxtyping: the annotations of shapes; it is pure Python.
ALLOWED = ("jax", "flax", "optax", "numpy", "absl", "ml_collections", "jaxtyping")

# Our modules cannot import what is not allowed; what these packages import is their affair.
_GUARDED = f"""
import builtins, runpy, sys
allowed = {{*sys.stdlib_module_names, *{ALLOWED!r}, "pixelrec_jax", "benchmarks"}}
real = builtins.__import__

def guarded(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {{}}).get("__name__", "").split(".")[0]
    ours = importer in ("pixelrec_jax", "benchmarks", "__main__")
    if ours and name.split(".")[0] not in allowed:
        raise ImportError(f"{{globals['__name__']}} imports {{name}}")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = guarded
program, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module(program, run_name="__main__")
"""


def _run(program, *flags):
    command = [sys.executable, "-c", _GUARDED, program, *flags]
    return subprocesses.run(command, check=True, cwd=ROOT).stdout


def test_what_is_not_allowed_cannot_be_imported():
    with pytest.raises(AssertionError, match=r"pixelrec_jax\.\S+ imports \w+"):
        _run("benchmarks.speed")


def test_the_ranking_runs_with_few_packages_and_says_what_it_measured(tmp_path):
    file = tmp_path / "result.json"
    sizes = ["--users=40", "--items=700", "--width=8", "--batch_size=16", "--chunk=256"]
    printed = _run("benchmarks.ranking", *sizes, "--rescored=0", "--rescored=64", f"--json={file}")
    result = json.loads(file.read_text())
    plain, screened = result["rankings"]
    assert screened["ranks_that_differ"] == 0
    assert plain["recall"] == screened["recall"]
    assert plain["users_per_second"] == pytest.approx(40 / plain["seconds"])
    assert plain["flops_per_second"] * plain["seconds"] == pytest.approx(2 * 40 * 700 * 8)
    assert result["versions"]["jax"]
    assert "float32" in printed
    assert "bfloat16, 64 again" in printed
