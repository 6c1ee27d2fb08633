"""Tables differentiated by row: the same training as with gradients of whole tables."""

from dataclasses import replace

import jax
import optax
import pytest

from pixelrec_jax.recommender import Recommender
from pixelrec_jax.training.experiment import build_experiment
from tests import double
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import tiny_config


def _train(config, devices, steps=3):
    """Compares losses, parameters and both moments, each on its own scale."""
    experiment = build_experiment(config, devices=devices)
    experiment = replace(experiment, model=double.module(experiment.model))
    start = place_state(draw_state(experiment), experiment)
    losses, state = run_steps(experiment, steps, double.cast(start))
    moments = (optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
    return jax.device_get((losses, state.params, *moments))


# MF's users and, on several devices, items repeat in a batch; clipping needs the norm of sums.
@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("user", ["sasrec", "mf"])
def test_training_is_that_with_gradients_of_whole_tables(toy_dataset, monkeypatch, user, devices):
    config = tiny_config(f"user={user},item=id,dataset=toy", toy_dataset)
    if "layers" in config.user:
        config.user.layers = 1
    config.optim.clip_norm = 0.1
    sparse = _train(config, jax.devices()[:devices])
    monkeypatch.setattr(Recommender, "embedding_lookups", lambda self, **_: {})
    dense = _train(config, jax.devices()[:devices])
    for actual, expected in zip(sparse, dense, strict=True):
        double.assert_close(actual, expected)
