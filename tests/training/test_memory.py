"""A run that cannot fit is refused before anything is allocated or written."""

import jax
import pytest

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import memory, train
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import create_state
from tests.tiny import tiny_config

WORDS = "user=mf,item=id,dataset=toy"


def test_a_state_larger_than_the_machine_is_refused(toy_dataset, tmp_path):
    config = tiny_config(WORDS, toy_dataset)
    config.width = 10**9
    expected = r"take [\d,.]+ GiB on each device, which has .* GiB; lower width=1000000000"
    with pytest.raises(UserError, match=expected):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_a_device_holds_is_counted(toy_dataset):
    config = tiny_config(WORDS, toy_dataset)
    experiment = build_experiment(config, devices=jax.devices()[:1])
    shapes = jax.eval_shape(lambda: create_state(experiment))
    assert memory.state_bytes(experiment) == sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes)
    )
    config.mesh.update({"fsdp": 8, "fsdp_min_size": 0})
    split = memory.state_bytes(build_experiment(config))
    assert split == pytest.approx(memory.state_bytes(experiment) / 8, rel=0.1)


def test_a_device_that_tells_its_memory_is_believed(monkeypatch):
    class Chip:
        platform = "tpu"

        def memory_stats(self):
            return {"bytes_limit": 17}

    monkeypatch.setattr(jax, "local_devices", lambda: [Chip()])
    assert memory.memory_of_a_device() == 17
