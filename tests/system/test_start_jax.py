"""Compiled programs are kept where a restart finds them, and JAX starts without noise."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import jax
import pytest

import pixelrec_jax
from pixelrec_jax.system import start_jax
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.tiny import ROOT

_NAMES = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nobody has chosen a cache of compiled programs; that of the user is in an empty folder."""
    before = {name: getattr(jax.config, name) for name in _NAMES}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIXELREC_CACHE", str(tmp_path))
    _forget()
    yield tmp_path / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def _forget():
    jax.config.update("jax_compilation_cache_dir", None)


def test_programs_for_a_cpu_are_kept_by_processor_and_versions_within_a_size(fresh, monkeypatch):
    start_jax.start_jax(Path("runs/first"))
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == fresh
    assert folder.is_dir()
    assert jax.__version__ in folder.name
    assert 0 < jax.config.jax_compilation_cache_max_size <= 2**31
    monkeypatch.setattr(start_jax.platform, "machine", lambda: "another")
    _forget()
    start_jax.start_jax()
    assert Path(jax.config.jax_compilation_cache_dir) != folder


def test_a_run_in_a_bucket_keeps_programs_of_accelerators_beside_it(fresh, monkeypatch):
    bucket = "gs://bucket/run"
    start_jax.start_jax(bucket)
    assert jax.config.jax_compilation_cache_dir.startswith(str(fresh))  # on a CPU
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    _forget()
    start_jax.start_jax(bucket)
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/run/compiled"
    _forget()
    start_jax.start_jax(Path("runs/first"))
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == fresh
    assert folder.name.startswith("tpu-jax-")


@pytest.mark.parametrize("chosen", ["", "/elsewhere"])
def test_the_users_own_choice_wins(fresh, monkeypatch, chosen):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", chosen)
    start_jax.start_jax()
    assert jax.config.jax_compilation_cache_dir is None  # what JAX read before stays
    assert not fresh.exists()


def test_the_choice_of_the_calling_program_wins(fresh):
    jax.config.update("jax_compilation_cache_dir", "/elsewhere")
    start_jax.start_jax()
    assert jax.config.jax_compilation_cache_dir == "/elsewhere"
    assert not fresh.exists()


_WORDS = "pixelrec:user=mf,item=id,dataset=toy"


@pytest.mark.parametrize(
    "function",
    [partial(pixelrec_jax.train, _WORDS), pixelrec_jax.evaluate, pixelrec_jax.load_run],
    ids=["train", "evaluate", "load_run"],
)
def test_a_function_for_your_own_program_keeps_what_is_compiled(fresh, tmp_path, function):
    with pytest.raises(UserError):  # there is no run and no dataset
        function(workdir=tmp_path / "run")
    assert Path(jax.config.jax_compilation_cache_dir).parent == fresh


def test_a_cache_that_cannot_be_written_is_not_used(fresh, monkeypatch):
    monkeypatch.setenv("PIXELREC_CACHE", "/proc/nowhere")
    start_jax.start_jax()
    assert jax.config.jax_compilation_cache_dir is None


def test_folders_of_old_versions_are_deleted(fresh):
    for number in range(6):
        folder = fresh / f"cpu-{number}"
        folder.mkdir(parents=True)
        (folder / "program").touch()
        os.utime(folder, (number, number))
    start_jax.start_jax()
    here = Path(jax.config.jax_compilation_cache_dir).name
    assert {path.name for path in fresh.iterdir()} == {here, "cpu-3", "cpu-4", "cpu-5"}


# Its argument is a folder of a run on an accelerator, or empty.
_PROGRAM = """
import json, sys, jax
from pixelrec_jax.system import storage
from pixelrec_jax.system.start_jax import start_jax
if sys.argv[1]:
    jax.default_backend = lambda: "tpu"
start_jax(storage.path(sys.argv[1]))
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(float(jax.jit(lambda x: x * 2 + 1)(3.0)))
print(json.dumps([x.rpartition("/")[2] for x in hits if "cache_hits" in x or "misses" in x]))
"""


def test_a_second_start_compiles_nothing_and_libtpu_is_silent(tmp_path):
    environment = {name: value for name, value in os.environ.items() if "TPU" not in name}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS"):
        environment.pop(name, None)
    environment["PIXELREC_CACHE"] = str(tmp_path)
    start = {"cwd": ROOT, "env": environment, "check": True}
    for expected in ("cache_misses", "cache_hits"):
        done = subprocesses.run([sys.executable, "-c", _PROGRAM, ""], **start)
        value, events = done.stdout.splitlines()
        assert value == "7.0"
        assert set(json.loads(events)) == {expected}
        assert done.stderr == ""


def test_a_second_start_of_a_run_in_a_bucket_compiles_nothing(bucket, tmp_path):
    environment = os.environ | {"PIXELREC_CACHE": str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR")
    command = [sys.executable, "-c", _PROGRAM, f"{bucket}/runs/compiled"]
    for expected in ("cache_misses", "cache_hits"):
        done = subprocesses.run(command, cwd=ROOT, env=environment, check=True)
        assert set(json.loads(done.stdout.splitlines()[1])) == {expected}, done.stderr
    assert not (tmp_path / "compiled").exists()
