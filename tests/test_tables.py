"""Tables differentiated by row: the same training as with gradients of whole tables."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
import pytest

from pixelrec_jax.experiment import build_experiment
from pixelrec_jax.recommender import Recommender
from pixelrec_jax.state import init_state
from tests.double import assert_close, cast
from tests.steps import run_steps
from tests.tiny import tiny_config


def _train(config, devices, steps=3):
    """Losses, parameters and both moments; each is on a scale of its own."""
    experiment = build_experiment(config, devices=devices)
    model = experiment.model
    model = model.clone(user_encoder=model.user_encoder.clone(dtype=jnp.dtype("float64")))
    state = cast(init_state(experiment))
    losses, state = run_steps(replace(experiment, model=model), steps, state)
    moments = (optax.tree.get(state.opt_state, name) for name in ("mu", "nu"))
    return jax.device_get((losses, state.params, *moments))


# MF's users and, on several devices, items repeat in a batch; clipping needs the norm of sums.
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("user", ["sasrec", "mf"])
def test_training_is_that_with_gradients_of_whole_tables(toy_dataset, monkeypatch, user, devices):
    config = tiny_config(f"user={user},item=id,dataset=toy", toy_dataset)
    config.optim.clip_norm = 0.1
    by_row = _train(config, jax.devices()[:devices])
    monkeypatch.setattr(Recommender, "lookups", lambda self, **_: {})
    whole = _train(config, jax.devices()[:devices])
    for actual, expected in zip(by_row, whole, strict=True):
        assert_close(actual, expected)
