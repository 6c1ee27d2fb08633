"""Microbatches: the pieces of a batch, cut by rows, that a step computes one after the other."""

from typing import Any

import jax
import jax.numpy as jnp

from pixelrec_jax.data.types import Array, Batch


def cut_batch(batch: Batch, count: int) -> Batch:
    """Returns the microbatches of a batch, stacked along a new leading axis [count, ...]."""
    pieces = cut(batch.replace(row=batch.row_numbers()), count)
    return pieces.replace(real_rows=jnp.full(count, batch.count_rows()))


def cut(tree: Any, count: int) -> Any:
    """Returns arrays [G, B, ...] in pieces along their second axis, [count, G, B / count, ...]."""

    def cut_one(x: Array) -> jax.Array:
        shards, rows = x.shape[:2]
        return jnp.moveaxis(x.reshape(shards, count, rows // count, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut_one, tree)


def join(tree: Any) -> Any:
    """Returns the arrays of which `cut` made these pieces."""

    def join_one(x: Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])

    return jax.tree.map(join_one, tree)
