"""AdamW against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pixelrec_jax.parallel.sharding import build_mesh
from pixelrec_jax.parallel.tables import IndexedSlices
from pixelrec_jax.training.optim import (
    build_optimizer,
    clip_by_global_norm,
    global_norm,
    learning_rates,
    scale_by_adam,
    update_norm,
)
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


def _gradients(sparse: bool):
    """A gradient of a table of six rows and of a matrix, and the same all dense."""
    rng = np.random.default_rng(0)
    ids, values = jnp.array([2, 5, 6]), jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    table = jnp.zeros((6, 4)).at[ids].add(values, mode="drop")  # 6 stands for no row
    values = values.at[2].set(0)
    kernel = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    dense = {"table": table, "kernel": kernel}
    return dense | ({"table": IndexedSlices(ids, values)} if sparse else {}), dense


@pytest.mark.numerical
@pytest.mark.parametrize("sparse", [False, True])
def test_norm_clipping_and_adam_see_the_values_of_sparse_gradients(sparse):
    gradient, dense = _gradients(sparse)
    np.testing.assert_allclose(global_norm(gradient), optax.tree.norm(dense), rtol=1e-6)
    params = jax.tree.map(jnp.zeros_like, dense)
    mesh = build_mesh(tiny_config("user=mf,item=id").mesh, jax.devices()[:1])
    for max_norm in (0.1, 100.0):
        ours = optax.chain(clip_by_global_norm(max_norm), scale_by_adam(0.9, 0.999, 1e-8, mesh))
        theirs = optax.chain(optax.clip_by_global_norm(max_norm), optax.scale_by_adam())
        state, expected_state = ours.init(params), theirs.init(params)
        for _ in range(2):
            update, state = ours.update(gradient, state, params)
            expected, expected_state = theirs.update(dense, expected_state, params)
            # Theirs corrects the bias of the first steps with a relative error of 1e-5.
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), update, expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_what_comes_after_adam_is_dense(sparse):
    """Decay, schedules and groups are optax's, which do not know sparse gradients."""
    config = tiny_config("user=mf,item=id")
    config.optim.update({"weight_decay": 0.1, "warmup_steps": 2, "clip_norm": 1.0})
    mesh = build_mesh(config.mesh, jax.devices()[:1])
    optimizer = build_optimizer(config.optim, mesh)
    gradient, dense = _gradients(sparse)
    params = {"user_encoder": jax.tree.map(jnp.ones_like, dense)}
    update, _ = optimizer.update({"user_encoder": gradient}, optimizer.init(params), params)
    assert jax.tree.map(jnp.shape, update) == jax.tree.map(jnp.shape, params)
    untouched = update["user_encoder"]["table"][0]
    np.testing.assert_allclose(untouched, -0.1 * config.optim.lr / 2, rtol=1e-6)


@pytest.mark.numerical
def test_the_norm_of_the_latest_update_is_that_of_the_updates():
    config = tiny_config("user=sasrec,item=vit_toy")
    config.optim.update({"lr": 0.1, "weight_decay": 0.3, "visual_weight_decay": 2.0})
    config.optim.update({"visual_lr": 0.05, "warmup_steps": 3})
    optimizer = build_optimizer(config.optim, build_mesh(config.mesh, jax.devices()[:1]))
    _, dense = _gradients(sparse=False)
    params = {"user_encoder": dense, "item_encoder": jax.tree.map(lambda x: x + 1, dense)}
    state = optimizer.init(params)
    for step in range(4):
        gradient = jax.tree.map(lambda x, n=step: jnp.sin(n + x), params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        norm = update_norm(config.optim, state, params, jnp.int32(step))
        np.testing.assert_allclose(norm, global_norm(updates), rtol=1e-6)


def test_learning_rates_are_those_of_the_schedule():
    config = tiny_config("user=sasrec,item=vit_toy")
    config.optim.update({"lr": 1.0, "visual_lr": 2.0, "warmup_steps": 4})
    for step, share in ((0, 0.25), (2, 0.625), (4, 1.0), (9, 1.0)):
        rates = learning_rates(config.optim, jnp.int32(step))
        assert rates == {"lr": pytest.approx(share), "visual_lr": pytest.approx(2 * share)}
