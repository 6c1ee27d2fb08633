"""AdamW against its equations and against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from pixelrec_jax.parallel.sharding import TABLE_SPEC, build_mesh
from pixelrec_jax.parallel.tables import IndexedSlices
from pixelrec_jax.training.optim import AdamW, clip_by_global_norm, global_norm, learning_rates
from tests.tiny import ALL_AXES, tiny_config


def _adamw(devices=1, **options):
    """The optimizer, and its options."""
    config = tiny_config("user=sasrec,item=vit_toy,dataset=custom")
    config.optim.update(options)
    if devices > 1:
        config.mesh.update(ALL_AXES)
    mesh = build_mesh(config.mesh, jax.devices()[:devices])
    return AdamW(config.optim, mesh), config.optim


@pytest.mark.numerical
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.0, 0.0)])
def test_the_first_steps_are_those_of_float64(b1, b2):
    """1 - b2**count is a difference of near numbers, of which float32 keeps five digits."""
    optimizer, optim = _adamw(b1=b1, b2=b2, warmup_steps=0, weight_decay=0.0, lr=1.0)
    gradients = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    params = {"user_encoder": {"x": np.zeros(7, np.float32)}}
    state, mu, nu = optimizer.init(params), 0, 0
    for count, gradient in enumerate(gradients, start=1):
        tree = {"user_encoder": {"x": gradient}}
        after, state = optimizer.update(tree, state, params)  # of zeros each time
        mu = b1 * mu + (1 - b1) * gradient.astype(np.float64)
        nu = b2 * nu + (1 - b2) * gradient.astype(np.float64) ** 2
        root = np.sqrt(nu / (1 - b2**count))
        expected = -mu / (1 - b1**count) / (root + optim.eps)
        # The first moment is a sum of terms of both signs.
        np.testing.assert_allclose(after["user_encoder"]["x"], expected, atol=1e-6)


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
@pytest.mark.parametrize("clip_norm", [0.1, 100.0])
def test_norm_clipping_and_adamw_are_those_of_optax_for_the_dense_gradient(sparse, clip_norm):
    gradient, dense = _gradients(sparse)
    np.testing.assert_allclose(global_norm(gradient), optax.tree.norm(dense), rtol=1e-6)
    clipped = global_norm(clip_by_global_norm(gradient, clip_norm))
    np.testing.assert_allclose(clipped, min(clip_norm, optax.tree.norm(dense)), rtol=1e-6)
    ours, optim = _adamw(lr=0.1, weight_decay=0.3, warmup_steps=3, clip_norm=clip_norm)
    rate = optax.linear_schedule(0.1 / 3, 0.1, 3)
    theirs = optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(rate, optim.b1, optim.b2, optim.eps, weight_decay=0.3),
    )
    params = expected = {"user_encoder": jax.tree.map(jnp.ones_like, dense)}
    state, expected_state = ours.init(params), theirs.init(params)
    for _ in range(4):
        params, state = ours.update({"user_encoder": gradient}, state, params)
        updates, expected_state = theirs.update({"user_encoder": dense}, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
        # Theirs corrects the bias of the first steps with a relative error of 1e-5.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), params, expected)
    assert int(state.count) == 4


def _read_rows(rng, step, rows):
    """Rows that a batch reads, with gradients; some are zero, and some ids stand for no row."""
    ids = rng.permutation(rows)[: 3 + step]
    values = rng.normal(size=(len(ids), 4)).astype(np.float32)
    values[0] = 0
    ids = np.append(ids, [rows, rows]).astype(np.int32)
    return IndexedSlices(jnp.asarray(ids), jnp.asarray(np.append(values, np.zeros((2, 4)), axis=0)))


@pytest.mark.numerical
@pytest.mark.parametrize("devices", [1, 8])
def test_a_lazy_table_changes_as_a_dense_one_in_the_rows_that_are_read_and_nowhere_else(devices):
    """The twin updates every row of a dense gradient, and takes back those that were not read."""
    rows, rng = 12, np.random.default_rng(0)
    options = {"lr": 0.1, "weight_decay": 0.3, "warmup_steps": 3, "clip_norm": 1.0}
    lazy, _ = _adamw(devices, lazy_tables=True, **options)
    dense, _ = _adamw(**options)
    table = jnp.asarray(rng.normal(size=(rows, 4)), jnp.float32)
    other = jnp.asarray(rng.normal(size=4), jnp.float32)
    twin = {"user_encoder": {"table": table, "bias": other}}
    twin_state = dense.init(twin)
    sharding = NamedSharding(lazy._mesh, TABLE_SPEC)
    params = {"user_encoder": {"table": jax.device_put(table, sharding), "bias": other}}
    state = lazy.init(params)
    update, norm = jax.jit(lazy.update), jax.jit(lazy.update_norm)
    for step in range(5):
        slices = _read_rows(rng, step, rows)
        whole = jnp.zeros((rows, 4)).at[slices.ids].add(slices.values, mode="drop")
        bias = jnp.asarray(rng.normal(size=4), jnp.float32)
        gradient = {"user_encoder": {"table": slices, "bias": bias}}
        params, state = update(gradient, state, params)

        old = (twin, twin_state.mu, twin_state.nu)
        gradient_of_all = {"user_encoder": {"table": whole, "bias": bias}}
        new, new_state = dense.update(gradient_of_all, twin_state, twin)
        is_read = np.isin(np.arange(rows), slices.ids)[:, None]
        trees = []
        for before, after in zip(old, (new, new_state.mu, new_state.nu), strict=True):
            kept = np.where(
                is_read, after["user_encoder"]["table"], before["user_encoder"]["table"]
            )
            trees.append({"user_encoder": {**after["user_encoder"], "table": jnp.asarray(kept)}})
        change = jax.tree.map(jnp.subtract, trees[0], twin)
        np.testing.assert_allclose(norm(gradient, state, params), global_norm(change), rtol=1e-5)
        twin, twin_state = trees[0], new_state._replace(mu=trees[1], nu=trees[2])
        for actual, expected in zip((params, state.mu, state.nu), trees, strict=True):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
                actual,
                expected,
            )
    assert int(state.count) == 5


@pytest.mark.numerical
def test_the_norm_of_the_latest_update_is_that_of_the_updates():
    optimizer, _ = _adamw(
        lr=0.1, weight_decay=0.3, visual_weight_decay=2.0, visual_lr=0.05, warmup_steps=3
    )
    _, dense = _gradients(sparse=False)
    params = {"user_encoder": dense, "item_encoder": jax.tree.map(lambda x: x + 1, dense)}
    state = optimizer.init(params)
    for step in range(4):
        gradient = jax.tree.map(lambda x, n=step: jnp.sin(n + x), params)
        before = params
        params, state = optimizer.update(gradient, state, params)
        change = jax.tree.map(jnp.subtract, params, before)
        norm = optimizer.update_norm(gradient, state, params)
        np.testing.assert_allclose(norm, global_norm(change), rtol=1e-5)


def test_learning_rates_are_those_of_the_schedule():
    optim = ConfigDict({"lr": 1.0, "visual_lr": 2.0, "warmup_steps": 4})
    for step, share in ((0, 0.25), (2, 0.625), (4, 1.0), (9, 1.0)):
        rates = learning_rates(optim, jnp.int32(step))
        assert rates == {"lr": pytest.approx(share), "visual_lr": pytest.approx(2 * share)}
