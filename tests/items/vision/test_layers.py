"""Batch norm over weighted images and stochastic depth by item."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from pixelrec_jax.items.vision.layers import BatchNorm, Context, DropPath


def _batch_norm(x, weight=None, train=True):
    model = BatchNorm()
    variables = model.init(jax.random.key(0), x, Context())
    context = Context(train=train, weight=weight)
    return model.apply(variables, x, context, mutable=["batch_stats"])


def _images(count):
    rng = np.random.default_rng(0)
    return (3 + rng.normal(size=(count, 4, 4, 5)) * rng.uniform(0.5, 2, 5)).astype(np.float32)


@pytest.mark.numerical
def test_batch_norm_is_pytorchs():
    x = _images(3)
    norm = torch.nn.BatchNorm2d(5)
    expected = norm(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).detach().numpy()
    y, changed = _batch_norm(x)
    np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["mean"], norm.running_mean, rtol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["var"], norm.running_var, rtol=1e-5)


@pytest.mark.numerical
def test_an_image_of_weight_two_counts_like_two_and_one_of_weight_zero_not_at_all():
    x = _images(3)
    once = np.concatenate([x, 100 + x[:1]])
    y, state = _batch_norm(once, weight=np.array([1, 2, 1, 0], np.float32))
    repeated, expected = _batch_norm(np.concatenate([x, x[1:2]]))
    np.testing.assert_allclose(y[:3], repeated[:3], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state, expected)


@pytest.mark.numerical
def test_batch_norm_in_evaluation_uses_and_keeps_the_running_statistics():
    x = _images(3)
    y, changed = _batch_norm(x, train=False)
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(changed["batch_stats"]["mean"], np.zeros(5))


def _drop(x, item, train=True, seed=0):
    rngs = {"dropout": jax.random.key(seed)}
    return DropPath(0.25).apply({}, x, Context(train=train, item=item), rngs=rngs)


def test_an_item_is_dropped_or_kept_wherever_it_lies():
    item = np.arange(1000)
    kept = np.asarray(_drop(jnp.ones((1000, 2, 3)), item))
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.75)}
    assert (kept == kept[:, :1, :1]).all()
    assert kept.mean() == pytest.approx(1, abs=0.06)  # four standard errors
    order = np.random.default_rng(0).permutation(1000)[:100]
    np.testing.assert_array_equal(_drop(jnp.ones((100, 2, 3)), item[order]), kept[order])
    assert (np.asarray(_drop(jnp.ones((1000, 2, 3)), item, seed=1)) != kept).any()


def test_nothing_is_dropped_in_evaluation():
    x = jnp.ones((10, 2))
    np.testing.assert_array_equal(_drop(x, np.arange(10), train=False), x)
