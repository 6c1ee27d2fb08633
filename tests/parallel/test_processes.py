"""Several real processes are one run: same batches, losses and files as one process, one end."""

import json
import os
import re
import shutil
import socket
import sys
from contextlib import ExitStack
from typing import NamedTuple

import jax
import numpy as np
import pytest

from pixelrec_jax.parallel import distributed
from pixelrec_jax.runs import run_folder
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from pixelrec_jax.training.experiment import build_experiment
from tests import subprocesses
from tests.tiny import ROOT, tiny_config

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


class Ended(NamedTuple):
    code: int
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        return self.errors.strip().splitlines()[-1]


def _start(programs, arguments, devices=4):
    """Runs programs side by side until all have ended; each is told its process number."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    options = {"cwd": ROOT, "env": {**os.environ, "XLA_FLAGS": subprocesses.xla_flags(devices)}}
    with ExitStack() as stack:
        processes = []
        for number, program in enumerate(programs):
            place = f"--distributed={address},{number},{len(programs)}"
            argv = [sys.executable, *program, *arguments, place]
            processes.append(stack.enter_context(subprocesses.started(argv, **options)))
        return [
            Ended(process.returncode, output, errors)
            for process in processes
            for output, errors in [process.communicate()]
        ]


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
    ended = _start([MAIN, MAIN], _arguments(toy_dataset, folder))
    assert [process.code for process in ended] == [0, 0], ended
    return folder, ended


@pytest.fixture(scope="module")
def preempted(toy_dataset, tmp_path_factory):
    """The same run; process 1 gets SIGTERM at step 4."""
    folder = tmp_path_factory.mktemp("preempted")
    programs = [_signalled(15, -1), _signalled(15, 4)]
    return folder, _start(programs, _arguments(toy_dataset, folder))


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
    ended = _start([_signalled(9, -1), _signalled(9, step + 8)], arguments)
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
    ended = _start([MAIN] * 4, arguments, devices=2)
    assert [process.code for process in ended] == [0] * 4, ended
    assert f"of 4 processes | continuing from step {saved}" in ended[0].errors
    np.testing.assert_allclose(_losses(folder), _losses(alone), rtol=1e-5)
    assert (folder / "result.json").read_text() == (alone / "result.json").read_text()
    assert not list((folder / "checkpoints").glob("*tmp*"))


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
    arguments = _arguments(toy_dataset, tmp_path / "two", words, **changes)
    ended = _start([MAIN, MAIN], arguments, devices=1)
    assert [process.code for process in ended] == [2, 2]
    assert "does not cover the 2 devices" in ended[0].last_line
    arguments += ["--config.mesh.data=2", "--config.mesh.fsdp=1"]
    ended = _start([MAIN, MAIN], arguments, devices=1)
    assert [process.code for process in ended] == [0, 0], ended
    config = run_folder.read_config(tmp_path / "two")
    config.mesh.data = 8
    config.data.workers = 0
    train.train_and_evaluate(config, tmp_path / "one")
    np.testing.assert_allclose(_losses(tmp_path / "two"), _losses(tmp_path / "one"), rtol=1e-5)


def test_what_one_process_alone_finds_wrong_ends_all(whole, toy_dataset, tmp_path):
    # Only process 0 looks at what the workdir holds.
    arguments = _arguments(toy_dataset, whole[0], **{"optim.lr": 0.5})
    first, second = _start([MAIN, MAIN], arguments)
    assert (first.code, second.code) == (2, 2)
    assert f"--workdir={whole[0]} holds a run with another config (optim.lr=" in first.last_line
    assert second.last_line == first.last_line.replace("error: ", "error: process 0 ended: ")

    # An override comes after the file.
    config, *arguments = _arguments(toy_dataset, tmp_path / "new")
    programs = [(*MAIN, config), (*MAIN, config, "--config.seed=1")]
    first, second = _start(programs, arguments)
    assert (first.code, second.code) == (2, 2)
    assert "process 1 has another config than process 0" in second.last_line
    assert first.last_line == second.last_line.replace("error: ", "error: process 1 ended: ")
    assert not (tmp_path / "new").exists()


def test_processes_that_never_come_are_not_waited_for_forever(tmp_path):
    program = "import runpy; from pixelrec_jax.parallel import distributed;"
    program += "distributed.JOIN_SECONDS = 1;"
    program += (
        "runpy.run_module('pixelrec_jax.programs.train', run_name='__main__', alter_sys=True)"
    )
    argv = [sys.executable, "-c", program, f"--workdir={tmp_path}", "--distributed=localhost:1,1,2"]
    ended = subprocesses.run(argv, cwd=ROOT)
    assert ended.returncode == 1
    assert "all must join within 1 seconds" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize("address", ["yes", "localhost,0,2", "localhost:80,2,2", "localhost:80,1"])
def test_a_malformed_address_is_refused(address):
    with (
        pytest.raises(UserError, match=re.escape(f"--distributed={address!r}; expected auto, or")),
        distributed.joined(address, resume_hint=lambda: ""),
    ):
        pass


# Batches of all processes, on meshes with axes that stay within a process or span several.
PARTS = """
import sys
from pathlib import Path
import jax
import numpy as np
from jax.experimental import multihost_utils
from pixelrec_jax.parallel import distributed
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from tests import subprocesses
from tests.tiny import tiny_config

dataset, folder, address = sys.argv[1:]
with distributed.joined(address.removeprefix("--distributed="), resume_hint=str):
    for axes in [(8, 1, 1), (4, 2, 1), (1, 8, 1), (2, 1, 4), (1, 2, 4), (1, 1, 8), (2, 2, 2)]:
        config = tiny_config("user=sasrec,item=vit_toy,dataset=toy", dataset)
        config.mesh.update(dict(zip(("data", "fsdp", "tensor"), axes)))
        experiment = build_experiment(config)
        local = experiment.batches[3]
        together = make_global_arrays(local, experiment.mesh, BATCH_SPEC)
        together = multihost_utils.process_allgather(together, tiled=True)
        name = "-".join(map(str, axes))
        leaves = {f"together_{n}": x for n, x in enumerate(jax.tree.leaves(together))}
        leaves |= {f"local_{n}": x for n, x in enumerate(jax.tree.leaves(local))}
        shards = np.array(experiment.batches.local_shards)
        np.savez(f"{folder}/{name}_{jax.process_index()}.npz", shards=shards, **leaves)
"""


def test_the_parts_of_all_processes_are_the_batch_of_one(toy_dataset, tmp_path):
    ended = _start([("-c", PARTS)] * 4, [str(toy_dataset), str(tmp_path)], devices=2)
    assert [process.code for process in ended] == [0] * 4, ended
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy", toy_dataset)
    meshes = {path.name.split("_")[0] for path in tmp_path.iterdir()}
    assert len(meshes) == 7
    for mesh in sorted(meshes):
        axes = [int(size) for size in mesh.split("-")]
        config.mesh.update(dict(zip(("data", "fsdp", "tensor"), axes, strict=True)))
        expected = jax.tree.leaves(build_experiment(config).batches[3])
        count, tensor = axes[0] * axes[1], axes[2]
        owners = np.zeros(count, int)
        for process in range(4):
            parts = np.load(tmp_path / f"{mesh}_{process}.npz")
            owners[parts["shards"]] += 1
            for number, leaf in enumerate(expected):
                np.testing.assert_array_equal(parts[f"together_{number}"], leaf)
                np.testing.assert_array_equal(parts[f"local_{number}"], leaf[parts["shards"]])
        # Two devices a process: a shard is read once, or in every process that it is in.
        np.testing.assert_array_equal(owners, max(1, tensor // 2))
