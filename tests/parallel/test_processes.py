"""Several real processes are one run: same batches, losses and files as one process, one end."""

import json
import shutil

import numpy as np
import pytest

from pixelrec_jax.runs import run_folder
from pixelrec_jax.training import train
from tests.parallel.processes import run_together
from tests.tiny import ROOT

pytestmark = pytest.mark.slow
# MF compiles fastest, and its tables are split over the axis fsdp.
WORDS = "user=mf,item=id,dataset=toy"
OPTIONS = {
    "width": 16,
    "train.batch_size": 64,
    "train.log_every": 1,
    "train.checkpoint_every": 3,
    "train.eval_every": 2,
    "train.epochs": 3,
    "data.workers": 0,
    "data.slot_buckets": 1,
    "mesh.data": 4,
    "mesh.fsdp": 2,
}
MAIN = ("-m", "pixelrec_jax.programs.train")
# The same program, which gets a signal at a step; the next steps are slow enough for the others to
# hear of it before the run is over. Silence counts as a loss sooner than for users.
SIGNALLED = """
import os, runpy, sys, time
from pixelrec_jax.parallel import distributed, preemption

distributed.LOST_SECONDS = 10
number, at_step = int(sys.argv[1]), int(sys.argv[2])
del sys.argv[1:3]
applies_to = preemption.StopRequest.applies_to

def signalled(self, step):
    if step == at_step:
        os.kill(os.getpid(), number)
    time.sleep(0.2)
    return applies_to(self, step)

preemption.StopRequest.applies_to = signalled
runpy.run_module("pixelrec_jax.programs.train", run_name="__main__", alter_sys=True)
"""

# The same program, for which one checkpoint is damaged when it is opened for the first time.
DAMAGED = """
import runpy, sys
from pixelrec_jax.runs import checkpoint

damaged, check_files = [sys.argv.pop(1)], checkpoint.check_files

def check(folder):
    if folder.name in damaged:
        damaged.remove(folder.name)
        raise ValueError("DATA_LOSS: a test")
    check_files(folder)

checkpoint.check_files = check
runpy.run_module("pixelrec_jax.programs.train", run_name="__main__", alter_sys=True)
"""

# The same program, which says which files of activations it writes, and writes small ones.
MAKING = """
import runpy, sys
from pixelrec_jax.data import activations

activations._FILE_BYTES, write = 1 << 15, activations.write

def telling(folder, number, rows):
    write(folder, number, rows)
    print("wrote", number)

activations.write = telling
runpy.run_module("pixelrec_jax.programs.train", run_name="__main__", alter_sys=True)
"""


def _arguments(dataset, folder, words=WORDS, **changes):
    options = {**OPTIONS, "dataset.path": dataset, **changes}
    return [f"--config={ROOT / 'configs' / 'pixelrec.py'}:{words}", f"--workdir={folder}"] + [
        f"--config.{key}={value}" for key, value in options.items()
    ]


def _signalled(number, step):
    return ("-c", SIGNALLED, str(number), str(step))


def _records(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        record["step"]: {
            name: x
            for name, x in record.items()
            if not name.startswith("time/") and "_per_" not in name
        }
        for record in records
    }


def _losses(folder):
    records = _records(folder)
    assert list(records) == list(range(1, len(records) + 1))
    return np.array([record["train/loss"] for record in records.values()])


def _saved(folder):
    return max(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def whole(toy_dataset, tmp_path_factory):
    """An uninterrupted run of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("whole")
    ended = run_together([MAIN, MAIN], _arguments(toy_dataset, folder))
    assert [process.code for process in ended] == [0, 0], ended
    return folder, ended


@pytest.fixture(scope="module")
def preempted(toy_dataset, tmp_path_factory):
    """The same run; process 1 gets SIGTERM at step 4."""
    folder = tmp_path_factory.mktemp("preempted")
    programs = [_signalled(15, -1), _signalled(15, 4)]
    return folder, run_together(programs, _arguments(toy_dataset, folder))


@pytest.fixture(scope="module")
def alone(whole, tmp_path_factory):
    """The same run in this one process, with eight devices."""
    folder = tmp_path_factory.mktemp("alone")
    train.train_and_evaluate(run_folder.read_config(whole[0]), folder)
    return folder


def test_two_processes_train_and_evaluate_as_one(whole, alone):
    folder, (first, second) = whole
    np.testing.assert_allclose(_losses(folder), _losses(alone), rtol=1e-5)
    assert (folder / "result.json").read_text() == (alone / "result.json").read_text()
    for expected in ("mf, item=id", "60 users"):
        assert expected in first.output
        assert expected not in second.output
    assert "8 cpu device(s) of 2 processes" in first.errors
    assert "step" not in second.errors  # one of them says what happens, and writes it
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_sigterm_of_one_process_stops_all_after_the_same_step(preempted, whole):
    folder, ended = preempted
    assert [process.code for process in ended] == [130, 130], ended
    for process in ended:
        assert process.last_line == "error: interrupted; start the same command again to continue"
        assert "Traceback" not in process.errors
    saved = _saved(folder)
    assert saved >= 4
    assert f"step {saved} is saved; the same command continues from there" in ended[0].errors
    losses = _losses(folder)
    assert len(losses) == saved < len(_losses(whole[0]))


def test_a_lost_process_ends_the_others_and_all_go_on(
    preempted, whole, alone, toy_dataset, tmp_path
):
    """SIGTERM, then SIGKILL, then twice as many processes on another mesh."""
    folder, step = tmp_path / "run", _saved(preempted[0])
    shutil.copytree(preempted[0], folder)
    arguments = _arguments(toy_dataset, folder)
    ended = run_together([_signalled(9, -1), _signalled(9, step + 8)], arguments)
    assert [process.code for process in ended] == [1, -9]
    saved = _saved(folder)
    assert step < saved <= step + 8
    assert ended[0].last_line == (
        "error: a process of this run was lost (see above); the last complete checkpoint is of "
        f"step {saved}; start all processes again with the same command to continue from there"
    )
    assert "Traceback" not in ended[0].errors
    # On the same mesh and number of processes every bit is that of the uninterrupted run.
    records, expected = _records(folder), _records(whole[0])
    assert len(records) >= saved
    assert list(records.items()) == list(expected.items())[: len(records)]

    other_mesh = {"mesh.data": 2, "mesh.fsdp": 4}
    arguments = _arguments(toy_dataset, folder, **other_mesh)
    ended = run_together([MAIN] * 4, arguments, devices=2)
    assert [process.code for process in ended] == [0] * 4, ended
    assert f"of 4 processes | continuing from step {saved}" in ended[0].errors
    np.testing.assert_allclose(_losses(folder), _losses(alone), rtol=1e-5)
    assert (folder / "result.json").read_text() == (alone / "result.json").read_text()
    assert not list((folder / "checkpoints").glob("*tmp*"))


def test_all_go_back_to_the_same_checkpoint_if_one_finds_the_newest_damaged(
    whole, toy_dataset, tmp_path
):
    folder, newest = tmp_path / "run", _saved(whole[0])
    shutil.copytree(whole[0], folder)
    programs = [MAIN, ("-c", DAMAGED, str(newest))]
    ended = run_together(programs, _arguments(toy_dataset, folder))
    assert [process.code for process in ended] == [0, 0], ended
    moved = folder / "checkpoints" / f"{newest}.damaged"
    assert (
        f"the checkpoint of step {newest} is damaged or incomplete (DATA_LOSS: a test); it is now "
        f"{moved}; continuing from step "
    ) in ended[0].errors
    assert moved.is_dir()
    assert _records(folder) == _records(whole[0])
    assert (folder / "result.json").read_text() == (whole[0] / "result.json").read_text()


def test_one_process_goes_on_from_the_checkpoint_of_two(preempted, alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(preempted[0], folder)
    config = run_folder.read_config(folder)
    config.mesh.update({"data": 8, "fsdp": 1})
    train.train_and_evaluate(config, folder)
    np.testing.assert_allclose(_losses(folder), _losses(alone), rtol=1e-5)
    assert (folder / "result.json").read_text() == (alone / "result.json").read_text()


def test_two_processes_read_images_in_processes_of_their_own(toy_dataset, tmp_path):
    # Four steps: processes that share few cores wait for each other, hundreds of times a step.
    changes = {"data.workers": 1, "train.epochs": 1, "train.batch_size": 192}
    changes["item.image_size"] = 16
    words = WORDS.replace("id", "vit_toy")
    changes |= {"mesh.data": 2, "mesh.fsdp": 1, "item.trainable": "none"}  # compiles fast
    arguments = _arguments(toy_dataset, tmp_path / "two", words, **changes)
    ended = run_together([MAIN, MAIN], arguments, devices=1)
    assert [process.code for process in ended] == [0, 0], ended
    config = run_folder.read_config(tmp_path / "two")
    config.mesh.data = 8
    config.data.workers = 0
    train.train_and_evaluate(config, tmp_path / "one")
    np.testing.assert_allclose(_losses(tmp_path / "two"), _losses(tmp_path / "one"), rtol=1e-5)


def test_two_processes_share_the_making_of_activations(toy_dataset, tmp_path):
    words = WORDS.replace("id", "vit_toy")
    changes = {"train.epochs": 0, "item.image_size": 16, "item.trainable": "last:1"}
    changes |= {"item.source": "cached", "item.cache_dir": tmp_path / "cache"}
    arguments = _arguments(toy_dataset, tmp_path / "two", words, **changes)
    ended = run_together([("-c", MAKING)] * 2, arguments)
    assert [process.code for process in ended] == [0, 0], ended
    made = [process.output.count("wrote") for process in ended]
    assert made == [3, 3]
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(list(folder.glob("*.npy"))) == 6
    assert "making activations" not in ended[1].errors
    assert (tmp_path / "two" / "result.json").exists()


def test_what_one_process_alone_finds_wrong_ends_all(whole, toy_dataset, tmp_path):
    # Only process 0 looks at what the workdir holds.
    arguments = _arguments(toy_dataset, whole[0], **{"optim.lr": 0.5})
    first, second = run_together([MAIN, MAIN], arguments)
    assert (first.code, second.code) == (2, 2)
    assert f"--workdir={whole[0]} holds a run with another config (optim.lr=" in first.last_line
    assert second.last_line == first.last_line.replace("error: ", "error: process 0 ended: ")

    # An override comes after the file.
    config, *arguments = _arguments(toy_dataset, tmp_path / "new")
    programs = [(*MAIN, config), (*MAIN, config, "--config.seed=1")]
    first, second = run_together(programs, arguments)
    assert (first.code, second.code) == (2, 2)
    assert "process 1 has another config than process 0" in second.last_line
    assert first.last_line == second.last_line.replace("error: ", "error: process 1 ended: ")
    assert not (tmp_path / "new").exists()
