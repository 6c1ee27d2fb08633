"""A sweep on this machine: interrupted, with a run that fails, and finished."""

import os
import signal
import sys
import threading
import time

import pytest

from pixelrec_jax.launch.commands import Command
from pixelrec_jax.launch.local import INTERRUPTED, train
from tests import subprocesses
from tests.launch.fakes import Fakes
from tests.tiny import ROOT


@pytest.mark.parametrize(
    ("number", "arrives"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGTERM),
        (signal.SIGHUP, signal.SIGTERM),
    ],
)
def test_signals_reach_the_run_once(tmp_path, number, arrives):
    program = f"""
import pathlib, signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(number))
pathlib.Path({str(tmp_path / "ready")!r}).touch()
end = time.monotonic() + 60
while not got and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.2)
sys.exit(130 if got == [{int(arrives)}] else 1)
"""

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.SIG_DFL)  # nohup ignores SIGHUP, from the start
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        assert train(Command((sys.executable, "-c", program))) == INTERRUPTED
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_nohup_keeps_a_run_from_the_end_of_its_terminal():
    program = f"import os, signal; os.kill({os.getpid()}, signal.SIGHUP)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert train(Command((sys.executable, "-c", program))) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_sweep_in_which_every_run_fails_names_them_all(tmp_path, monkeypatch):
    monkeypatch.setattr("pixelrec_jax.launch.local.train", lambda command: 1)
    config = "--config=pixelrec:user=sasrec,dataset=toy"
    sweep = ["--sweep=vit_toy,swin_t", "--", config, "--workdir=runs"]
    process = Fakes(tmp_path).launch("local", *sweep)
    assert process.returncode == 1
    assert process.stderr == (
        "error: 2 of 2 runs failed: runs/vit_toy (exit code 1), runs/swin_t (exit code 1); start "
        "the same command again to continue\n"
    )


def test_a_run_that_a_signal_ends_is_interrupted_not_failed():
    for number in ("SIGINT", "SIGTERM"):
        program = f"import os, signal; signal.signal(signal.{number}, signal.SIG_DFL); "
        program += f"os.kill(os.getpid(), signal.{number})"
        assert train(Command((sys.executable, "-c", program))) == INTERRUPTED
    assert train(Command((sys.executable, "-c", "raise SystemExit(3)"))) == 3


# Makes the runs that a launcher starts use the small siblings of encoders, and not import PyTorch.
_TINY = """
import sys
sys.modules["torch"] = None
if "pixelrec_jax" in sys.orig_argv:
    from pixelrec_jax.items import vision
    from tests.tiny import TINY
    vision.VISION_ENCODERS.update(TINY)
"""


def test_one_run_ends_as_if_started_without_a_launcher(tmp_path):
    config = "--config=pixelrec:user=sasrec,item=id,dataset=toy"
    run = ["--", config, f"--workdir={tmp_path}/run", f"--config.dataset.path={tmp_path}/nowhere"]
    process = Fakes(tmp_path).run(sys.executable, "-m", "pixelrec_jax.launch.local", *run)
    assert process.returncode == 2
    assert process.stderr.count("error: ") == 1
    assert f"{tmp_path}/nowhere" in process.stderr


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_interrupted_and_past_a_run_that_fails(toy_dataset, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(_TINY)
    root = tmp_path / "sweep"
    command = [
        *(
            sys.executable,
            "-m",
            "pixelrec_jax.launch.local",
            "--sweep=vit_toy,clip_rn50x4,vit_b16",
            "--",
        ),
        "--config=pixelrec:user=mf,dataset=toy",
        f"--config.dataset.path={toy_dataset}",
        f"--workdir={root}",
        "--config.item.image_size=16",  # too few pixels for clip_rn50x4
        *("--config.item.weights=", "--config.item.trainable=last:1", "--config.width=16"),
        *("--config.train.epochs=6", "--config.train.eval_every=6", "--config.train.log_every=1"),
    ]
    environment = os.environ | {
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "XLA_FLAGS": subprocesses.xla_flags(1),
    }
    start = {"cwd": ROOT, "env": environment}
    metrics = root / "vit_toy" / "metrics.jsonl"
    with subprocesses.started(command, **start) as process:
        while not (metrics.exists() and metrics.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == INTERRUPTED, error
    assert os.listdir(root) == ["vit_toy"]
    saved = len(metrics.read_text().splitlines())
    assert f"step {saved} is saved" in error

    finished = subprocesses.run(command, **start)
    assert finished.returncode == 2
    assert f"continuing from step {saved}" in finished.stderr
    assert finished.stderr.splitlines()[-1] == (
        f"error: 1 of 3 runs failed: {root}/clip_rn50x4 (exit code 2); see the errors above"
    )
    # The tables of all targets and of cold ones; that of sizes lists finished runs only.
    tables = finished.stdout[finished.stdout.rindex("all test targets") :]
    rows = [line.split()[:3] for line in tables.splitlines() if str(root) in line]
    first, last = (["mf,", f"item={x}", f"({root}/{x})"] for x in ("vit_toy", "vit_b16"))
    assert rows == [*2 * [first, ["no", "result", "yet"], last], first, last]
