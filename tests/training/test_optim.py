"""AdamW against its equations."""

import jax
import numpy as np
import pytest

from pixelrec_jax.parallel.sharding import build_mesh
from pixelrec_jax.training.optim import build_optimizer
from tests.tiny import tiny_config


@pytest.mark.numerical
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.0, 0.0)])
def test_the_first_steps_are_those_of_float64(b1, b2):
    """1 - b2**count is a difference of near numbers, of which float32 keeps five digits."""
    config = tiny_config("user=mf,item=id,dataset=custom")
    config.optim.update({"b1": b1, "b2": b2, "warmup_steps": 0, "weight_decay": 0.0, "lr": 1.0})
    mesh = build_mesh(config.mesh, jax.devices()[:1])
    optimizer = build_optimizer(config.optim, mesh)
    gradients = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    params = {"user_encoder": {"x": np.zeros(7, np.float32)}}
    state, mu, nu = optimizer.init(params), 0, 0
    for count, gradient in enumerate(gradients, start=1):
        tree = {"user_encoder": {"x": gradient}}
        update, state = optimizer.update(tree, state, params)
        mu = b1 * mu + (1 - b1) * gradient.astype(np.float64)
        nu = b2 * nu + (1 - b2) * gradient.astype(np.float64) ** 2
        root = np.sqrt(nu / (1 - b2**count))
        expected = -mu / (1 - b1**count) / (root + config.optim.eps)
        # The first moment is a sum of terms of both signs.
        np.testing.assert_allclose(update["user_encoder"]["x"], expected, atol=1e-6)
