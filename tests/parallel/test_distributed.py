"""Processes join at one address or are refused, and share every batch."""

import re
import sys

import jax
import numpy as np
import pytest

from pixelrec_jax.parallel import distributed
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from tests import subprocesses
from tests.parallel.processes import run_together
from tests.tiny import ROOT, tiny_config

pytestmark = pytest.mark.slow


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
    ended = run_together([("-c", PARTS)] * 4, [str(toy_dataset), str(tmp_path)], devices=2)
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
