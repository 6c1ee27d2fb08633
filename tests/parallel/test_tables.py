"""Tables differentiated by row: the same training as with gradients of whole tables."""

import jax
import numpy as np
import pytest

from pixelrec_jax.recommender import Recommender
from pixelrec_jax.training.experiment import build_experiment
from tests.steps import run_steps
from tests.tiny import tiny_config


def _state(config, devices, steps=3):
    _, state = run_steps(build_experiment(config, devices=devices), steps)
    return jax.device_get(state)


# MF's users and, on several devices, items repeat in a batch; clipping needs the norm of sums.
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("user", ["sasrec", "mf"])
def test_training_is_that_with_gradients_of_whole_tables(toy_dataset, monkeypatch, user, devices):
    config = tiny_config(f"user={user},item=id,dataset=toy", toy_dataset)
    config.optim.clip_norm = 0.1
    actual = _state(config, jax.devices()[:devices])
    monkeypatch.setattr(Recommender, "embedding_lookups", lambda self, **_: {})
    expected = _state(config, jax.devices()[:devices])

    def assert_close(actual, expected):
        scale = np.abs(expected).max(initial=1e-30)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)

    jax.tree.map(assert_close, actual, expected)
