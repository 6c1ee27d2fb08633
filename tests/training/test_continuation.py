"""A run that is killed, stopped or cannot write goes on with the same command, bit for bit."""

import json
import os
import signal
import sys
import time

import pytest

from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.training import train
from tests import subprocesses
from tests.tiny import ROOT
from tests.training.runs import (
    MODELS,
    KilledError,
    assert_equal_runs,
    dying_iterate,
    finish_run,
    run_config,
)


# Before the first checkpoint, between two, right after one, in the second epoch; images add what
# is read from disk, and lazy tables rows that kept their moments: one of these is enough for each.
@pytest.mark.parametrize(
    ("words", "deaths", "lazy_tables"),
    [
        (MODELS[0], (1, 5, 3, 2), False),
        (MODELS[1], (5,), False),
        ("user=mf,item=id,dataset=toy", (5,), True),
    ],
)
def test_a_run_that_is_killed_again_and_again_equals_the_uninterrupted_one(
    toy_dataset, tmp_path, monkeypatch, words, deaths, lazy_tables
):
    config = run_config(words, toy_dataset)
    if "trainable" in config.item:
        config.item.trainable = "last:1"  # compiles faster
    config.optim.lazy_tables = lazy_tables
    whole = finish_run(config, tmp_path / "whole")
    assert whole[1][-1]["step"] == int(whole[0].step)
    for batches_until_death in deaths:
        with monkeypatch.context() as patch:
            patch.setattr(train, "iterate", dying_iterate(batches_until_death))
            with pytest.raises(KilledError):
                train.train_and_evaluate(config, tmp_path / "killed")
    assert_equal_runs(finish_run(config, tmp_path / "killed"), whole)


def test_a_signal_that_arrives_while_a_step_is_logged_saves_the_next_step(
    toy_dataset, tmp_path, monkeypatch
):
    config = run_config(MODELS[0], toy_dataset, checkpoint_every=1000)
    write = run_folder.MetricsLog.write

    def write_and_signal(self, step, scalars):
        write(self, step, scalars)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_folder.MetricsLog, "write", write_and_signal)
    with pytest.raises(KeyboardInterrupt):
        train.train_and_evaluate(config, tmp_path)
    with Checkpoints(tmp_path / "checkpoints", metric="ndcg@10", read_only=True) as checkpoints:
        assert checkpoints.latest == 3  # logged at step 2


def _command(words, dataset, workdir):
    path = f"{ROOT / 'configs' / 'pixelrec.py'}:{words}"
    options = {
        "dataset.path": dataset,
        "width": 16,
        **({"item.image_size": 16, "item.trainable": "last:1"} if "vit" in words else {}),
        "train.batch_size": 16,
        "train.checkpoint_every": 3,
        "train.log_every": 1,
        "train.epochs": 5,
        "data.prefetch": 1,
        "data.slot_buckets": 1,
    }
    return [
        *(
            sys.executable,
            "-m",
            "pixelrec_jax.programs.train",
            f"--config={path}",
            f"--workdir={workdir}",
        ),
        *(f"--config.{key}={value}" for key, value in options.items()),
    ]


def _started(command):
    """A run on one device."""
    environment = {**os.environ, "XLA_FLAGS": subprocesses.xla_flags(1)}
    return subprocesses.started(command, cwd=ROOT, env=environment)


def _last_step(workdir):
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def _steps_logged(workdir):
    log = workdir / "metrics.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_the_program_stopped_by_sigterm_saves_its_step(toy_dataset, tmp_path, workers):
    command = [*_command(MODELS[1], toy_dataset, tmp_path), f"--config.data.workers={workers}"]
    command += ["--config.train.epochs=1000", "--config.train.checkpoint_every=1000000"]
    with _started(command) as victim:
        while _steps_logged(tmp_path) < 2:
            assert victim.poll() is None, victim.stderr.read()
            time.sleep(0.01)
        os.killpg(victim.pid, signal.SIGINT if workers else signal.SIGTERM)
        _, errors = victim.communicate()
    assert victim.returncode == 130
    assert "error: interrupted; start the same command again" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    saved = max(
        int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert f"step {saved} is saved" in errors
    assert saved == _last_step(tmp_path)


@pytest.mark.slow
def test_the_program_killed_by_a_signal_continues_with_the_same_command(toy_dataset, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def finish(workdir):
        with _started(_command(MODELS[0], toy_dataset, workdir)) as process:
            _, errors = process.communicate()
        assert process.returncode == 0, errors

    finish(whole)
    with _started(_command(MODELS[0], toy_dataset, killed)) as victim:
        while _steps_logged(killed) < 8:
            assert victim.poll() is None, "finished before it could be killed"
            time.sleep(0.01)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
    assert not (killed / "result.json").exists()
    finish(killed)

    def losses(workdir):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return [(record["step"], record["train/loss"]) for record in map(json.loads, lines)]

    assert losses(killed) == losses(whole)
    assert (killed / "result.json").read_text() == (whole / "result.json").read_text()


def test_a_checkpoint_that_does_not_fit_on_the_disk(toy_dataset, tmp_path):
    """A limit on the size of files stands in for the full disk: the same failure of a write."""
    workdir = tmp_path / "run"
    limit = "import resource, runpy, signal, sys; sys.argv.pop(0);"
    limit += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000));"
    limit += "runpy.run_module('pixelrec_jax.programs.train', run_name='__main__', alter_sys=True)"
    command = _command("user=mf,item=id,dataset=toy", toy_dataset, workdir)[3:]
    environment = {"JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin"}  # no compile cache to write
    argv = [
        sys.executable,
        "-c",
        limit,
        "pixelrec_jax.programs.train",
        *command,
        "--config.width=256",
    ]
    ended = subprocesses.run(argv, cwd=ROOT, env=environment)
    assert ended.returncode == 2, ended.stderr
    *_, last = lines = ended.stderr.strip().splitlines()
    assert [line for line in lines if "Traceback" in line or "Error" in line] == []
    assert "could not be written" in last
    assert "none is complete; the file system or a limit (ulimit -f) does not take files" in last
    assert not list((workdir / "checkpoints").glob("*tmp*"))
