"""Digests of arrays: they show whether a state that is loaded is the one that was saved."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pixelrec_jax.data.types import Array

_ODD = (1, 0x9E3779B1)  # for two independent sums, 64 bits together
_OFFSET = np.uint32(0x7F4A7C15)  # small words and positions must not be mixed alike


def leaves_by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, as in "trainable/item_encoder/table"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def digests(tree: Any) -> dict[str, str]:
    """Returns a digest of 64 bits in hexadecimal for each array of a tree, by its path.

    The devices compute them where the shards lie; in a run of several processes this is collective.
    A digest is the same on every mesh, as sums of integers do not depend on their order. Rows of
    zeros at the end of an array, which pad a table, do not change it.
    """
    # One program for each kind of array: one for all of them would take long to compile.
    sums = jax.device_get({name: _sums(leaf) for name, leaf in leaves_by_name(tree).items()})
    return {name: "".join(f"{int(x):08x}" for x in pair) for name, pair in sums.items()}


@jax.jit
def _sums(x: Array) -> tuple[jax.Array, ...]:
    """Returns two sums modulo 2**32 of the mixed words of an array, weighted by position, uint32[].

    Words are mixed one to one and weights are odd, so that no change of a single word is missed; as
    weights are hashes of positions, words that trade places are not missed either. Zeros add zero.
    """
    words = _words(x)
    position = _positions(words.shape)
    terms = [
        _mix(words * odd) * (_mix(position * odd + _OFFSET) | np.uint32(1))
        for odd in map(np.uint32, _ODD)
    ]
    # Both in one reduction: XLA's CPU backend would take ten times as long for two.
    return tuple(jax.lax.reduce(terms, [np.uint32(0)] * len(terms), _add, tuple(range(words.ndim))))


def _add(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(one, other, strict=True)]


def _words(x: Array) -> jax.Array:
    """Returns the bits of an array as uint32; entries of 64 bits become two along a last axis."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_:
        return jax.lax.convert_element_type(x, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """Returns the index of each entry in row-major order modulo 2**32.

    The number of rows does not enter, so further rows leave the positions of the others.
    """
    position, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        position += along * np.uint32(stride % 2**32)
        stride *= shape[axis]
    return position


def _mix(x: jax.Array) -> jax.Array:
    """Returns a bijection of uint32 that keeps 0: the finalizer of MurmurHash3 (Appleby 2011)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
