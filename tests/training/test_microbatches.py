"""A step in microbatches: that of the whole batch, in less memory."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from pixelrec_jax.parallel.sharding import BATCH_SPEC, shapes
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.flops import StepFlops
from pixelrec_jax.training.state import microbatches_line, state_template
from pixelrec_jax.training.step import make_train_step
from tests import double
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import ALL_AXES, tiny_config, use_tiny_encoders
from tests.training.runs import MODELS, run_config


def _trained(config, devices):
    """Losses, parameters and moments after three steps, computed in float64."""
    experiment = build_experiment(config, devices=devices)
    experiment = replace(experiment, model=double.module(experiment.model))
    start = double.cast(place_state(draw_state(experiment), experiment))
    losses, state = run_steps(experiment, 3, start)
    return jax.device_get((losses, state.params, state.opt_state.mu, state.opt_state.nu))


@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(
    ("words", "mesh"), [("user=mf,item=id,dataset=toy", ALL_AXES), (MODELS[1], {})]
)
def test_steps_in_microbatches_are_those_of_the_whole_batch(toy_dataset, words, mesh):
    """With dropout, rows of padding, rows that lazy tables read, and blocks that are recomputed."""
    config = run_config(words, toy_dataset)
    config.optim.update({"clip_norm": 0.1, "lazy_tables": "item=id" in words})
    config.train.batch_size = 40
    if "trainable" in config.item:
        config.item.trainable = "last:1"  # compiles faster
    config.mesh.update(mesh)
    devices = jax.devices()[: 8 if mesh else 1]
    whole = _trained(config, devices)
    config.train.microbatches = 5
    if "remat" in config.item:
        config.item.remat = True
    pieces = _trained(config, devices)
    for actual, expected in zip(pieces, whole, strict=True):
        double.assert_close(actual, expected)


def _temporary_bytes(config):
    experiment = build_experiment(config, devices=jax.devices()[:1])
    batch = shapes(experiment.batches[0], experiment.mesh, BATCH_SPEC)
    step = make_train_step(experiment).lower(state_template(experiment), batch, experiment.resident)
    return step.compile().memory_analysis().temp_size_in_bytes


def test_a_step_in_microbatches_needs_less_memory(toy_dataset):
    config = run_config(MODELS[0], toy_dataset)
    config.train.batch_size = 128
    whole = _temporary_bytes(config)
    config.train.microbatches = 8
    assert _temporary_bytes(config) < 0.5 * whole


def test_items_that_several_microbatches_encode_are_told(toy_dataset):
    config = tiny_config("user=sasrec,item=vit_toy,dataset=toy", toy_dataset)
    config.train.microbatches = 4
    experiment = build_experiment(config, devices=jax.devices()[:2])
    ids = experiment.batches[0].items.id
    encoded, distinct = np.count_nonzero(ids), sum(len(set(shard) - {0}) for shard in ids)
    assert encoded > distinct
    line = microbatches_line(experiment)
    assert f"{encoded} items instead of {distinct} in the first step" in line
    config.train.microbatches = 1
    assert microbatches_line(build_experiment(config, devices=jax.devices()[:1])) is None


def test_operations_are_those_of_the_batch_as_one_piece(toy_dataset):
    config = tiny_config("user=sasrec,item=id,dataset=toy", toy_dataset)
    one = build_experiment(config, devices=jax.devices()[:1])
    config.train.microbatches = 4
    four = build_experiment(config, devices=jax.devices()[:1])
    batch = shapes(four.batches[0], four.mesh, BATCH_SPEC)
    assert StepFlops(four, make_train_step)(batch) == StepFlops(one, make_train_step)(batch)


def test_microbatches_that_would_change_the_result_are_refused(toy_dataset, monkeypatch):
    use_tiny_encoders(monkeypatch)

    def refused(words, match, **changes):
        config = tiny_config(f"{words},dataset=toy", toy_dataset)
        config.update_from_flattened_dict({"train.microbatches": 2, **changes})
        with pytest.raises(UserError, match=match):
            build_experiment(config, devices=jax.devices()[:1])

    resnet = "user=mf,item=resnet18"
    refused(resnet, "microbatches=2, but batch norm .* set item.frozen_statistics=True")
    both = {"item.frozen_in_train_mode": True, "item.frozen_statistics": True}
    refused(resnet, "set one of them to False", **both)
    refused("user=fm,item=id", "single_row=True reads a single row", **{"loss.single_row": True})
    refused("user=mf,item=id", "2 microbatches|choose a multiple of 2", **{"train.batch_size": 15})
