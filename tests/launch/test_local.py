"""A sweep on this machine: interrupted, with a run that fails, and finished."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch.commands import Command
from launch.local import INTERRUPTED, train
from tests.tiny import ROOT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_run_once(tmp_path, number):
    program = f"""
import pathlib, signal, sys, time
got = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: got.append(number))
pathlib.Path({str(tmp_path / "ready")!r}).touch()
while not got:
    time.sleep(0.01)
time.sleep(0.2)
sys.exit(130 if got == [{int(number)}] else 1)
"""
    before = signal.getsignal(number)

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    assert train(Command((sys.executable, "-c", program))) == INTERRUPTED
    assert signal.getsignal(number) is before


def test_a_run_that_a_signal_ends_is_interrupted_not_failed():
    for number in ("SIGINT", "SIGTERM"):
        program = f"import os, signal; signal.signal(signal.{number}, signal.SIG_DFL); "
        program += f"os.kill(os.getpid(), signal.{number})"
        assert train(Command((sys.executable, "-c", program))) == INTERRUPTED
    assert train(Command((sys.executable, "-c", "raise SystemExit(3)"))) == 3


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_interrupted_and_past_a_run_that_fails(toy_dataset, tmp_path):
    root = tmp_path / "sweep"
    command = [
        *(sys.executable, "-m", "launch.local", "--sweep=vit_toy,clip_vit_b32,resnet18", "--"),
        f"--config={ROOT}/configs/pixelrec.py:user=sasrec,dataset=toy",
        f"--config.dataset.path={toy_dataset}",
        f"--workdir={root}",
        *("--config.item.image_size=16", "--config.width=16", "--config.item.trainable=last:1"),
        *("--config.train.log_every=1", "--config.train.eval_every=40"),
    ]
    start = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **start)
    metrics = root / "vit_toy" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == INTERRUPTED, error
    assert "is saved" in error
    assert os.listdir(root) == ["vit_toy"]
    saved = len(metrics.read_text().splitlines())

    finished = subprocess.run(command, **start, check=False)
    assert finished.returncode == 2
    assert f"continues after step {saved}" in finished.stderr
