"""A backbone that is run in pieces, each compiled for itself, gives the bits of the whole."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import path_aware_map

from pixelrec_jax.items.vision.backbone import Backbone
from pixelrec_jax.items.vision.blocks import POOL
from tests.tiny import ARCHITECTURES, TINY

pytestmark = pytest.mark.numerical


def _images(dtype: str) -> jax.Array:
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 3))
    return jnp.asarray(images, dtype)


def _weights(backbone: Backbone, images: jax.Array) -> dict:
    """Random weights and statistics of a size at which every block matters."""
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), images)
    rng = np.random.default_rng(0)

    def draw(path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        low, high = (0.5, 1.5) if path[-1] in ("scale", "var") else (-0.3, 0.3)
        return rng.uniform(low, high, leaf.shape).astype(leaf.dtype)

    return path_aware_map(draw, shapes)


def _pieces(backbone: Backbone) -> Callable[..., jax.Array]:
    """`backbone.run` of weights, x, start and stop; each piece is a program of its own."""
    return jax.jit(
        lambda weights, x, start, stop: backbone.apply(weights, x, start, stop, method="run"),
        static_argnums=(2, 3),
    )


def _check(backbone: Backbone, cuts: list[int]) -> None:
    images = _images("float32")
    weights, run = _weights(backbone, images), _pieces(backbone)
    whole = run(weights, images, 0, None)
    assert whole.dtype == jnp.float32
    assert jnp.std(whole) > 0
    for cut in cuts:
        pieces = run(weights, run(weights, images, 0, cut), cut, None)
        np.testing.assert_array_equal(pieces, whole, f"cut at {backbone.step_names[cut]}")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_pieces_give_the_bits_of_the_whole(name):
    backbone = TINY[name].backbone(pool=TINY[name].pools[0])
    _check(backbone, list(range(1, len(backbone.step_names))))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_one_by_one_give_the_bits_of_the_whole_in_bfloat16(name):
    backbone = TINY[name].backbone(pool=TINY[name].pools[0], dtype=jnp.bfloat16)
    images = _images("bfloat16")
    weights, run = _weights(backbone, images), _pieces(backbone)
    whole, x = run(weights, images, 0, None), images
    for step, name in enumerate(backbone.step_names):
        x = run(weights, x, step, step + 1)
        assert x.dtype == jnp.bfloat16, name
    assert jnp.std(whole.astype(jnp.float32)) > 0
    np.testing.assert_array_equal(x, whole)


@pytest.mark.parametrize(
    ("name", "pool"),
    [(name, pool) for name in ARCHITECTURES for pool in TINY[name].pools[1:]],
)
def test_pooling_apart_gives_the_bits_of_the_whole(name, pool):
    backbone = TINY[name].backbone(pool=pool)
    _check(backbone, [backbone.step_names.index(POOL)])
