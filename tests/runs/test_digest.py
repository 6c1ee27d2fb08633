"""Digests of arrays: equal for equal values wherever they lie, different for any other values."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pixelrec_jax.runs.digest import digests

_DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint32, np.uint8, np.bool_)


def _random(dtype, *shape):
    values = np.random.default_rng(0).normal(size=shape)
    return values > 0 if dtype is np.bool_ else values.astype(dtype)


def _digest(x):
    return digests({"x": x})["x"]


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_a_digest_does_not_depend_on_the_mesh_nor_on_padding_rows(mesh, dtype):
    x = _random(dtype, 24, 6)
    padded = np.concatenate([x, np.zeros((8, 6), dtype)])
    specs = [PartitionSpec(), PartitionSpec(("a", "b")), PartitionSpec("a", "b")]
    sharded = {str(n): jax.device_put(x, NamedSharding(mesh, s)) for n, s in enumerate(specs)}
    sharded |= {
        f"p{n}": jax.device_put(padded, NamedSharding(mesh, s)) for n, s in enumerate(specs)
    }
    assert set(digests({**sharded, "host": x, "padded": padded}).values()) == {_digest(x)}
    assert _digest(np.roll(x, 1, axis=0)) != _digest(x)


@pytest.mark.parametrize("dtype", _DTYPES)
def test_every_bit_counts(dtype):
    x = _random(dtype, 3, 5)
    bits = range(1) if dtype is np.bool_ else range(8 * x.itemsize)
    found = {_digest(x)}
    for entry in range(x.size):
        for bit in bits:
            other = x.copy()
            raw = other.reshape(-1)[entry : entry + 1].view(np.uint8)
            raw[bit // 8] ^= 1 << bit % 8
            found.add(_digest(other))
    assert len(found) == 1 + x.size * len(bits)


def test_swaps_count_also_of_opposite_numbers():
    x = np.zeros(40, np.float32)
    x[3], x[17] = 0.5, -0.5  # they differ in the highest bit only, which odd factors leave alone
    swapped = x.copy()
    swapped[[3, 17]] = x[[17, 3]]
    assert _digest(x) != _digest(swapped) != _digest(-x) != _digest(x)


def test_keys_scalars_and_empty_arrays_have_digests():
    tree = {"key": jax.random.key(1), "step": jnp.int32(3), "none": jnp.zeros((0, 4))}
    first = digests(tree)
    assert first.keys() == tree.keys()
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in first.values())
    second = digests({**tree, "key": jax.random.key(2), "step": jnp.int32(4)})
    assert {name for name in tree if first[name] != second[name]} == {"key", "step"}
    assert digests({}) == {}


def test_numbers_of_64_bits_count_as_a_whole():
    with jax.enable_x64(True):
        x = np.arange(1, 5, dtype=np.int64)
        high = x + 2**40
        assert len({_digest(x), _digest(high), _digest(x[::-1].copy())}) == 3
