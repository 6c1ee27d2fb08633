"""The gradient of a training loss: sparse for tables whose rows are looked up, in microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from pixelrec_jax.data.microbatches import cut, cut_batch, join
from pixelrec_jax.data.types import Batch
from pixelrec_jax.parallel.sharding import BATCH_SPEC
from pixelrec_jax.parallel.tables import Lookups, read_embeddings, sparse_gradient

# The loss of parameters, looked-up rows and a batch, and an auxiliary output.
BatchLoss = Callable[[dict, dict, Batch], tuple[jax.Array, Any]]


def value_and_sparse_grad(
    loss: BatchLoss,
    params: dict,
    batch: Batch,
    lookups: Lookups,
    *,
    microbatches: int,
    mesh: Mesh,
    shardings: dict,
) -> tuple[tuple[jax.Array, Any], dict]:
    """Returns a loss with its auxiliary output, and its gradient, sparse for tables of `lookups`.

    With microbatches, only the activations of one of them are in memory. Each sums its gradients
    over the devices, so that the sum is sharded as the parameters are.

    Args:
      loss: its looked-up rows are variables of `tables.COLLECTION`; microbatches' losses sum up to
        that of the batch.
      params: the parameters to differentiate.
      batch: the global batch.
      lookups: the rows that it reads; all other tables have dense gradients.
      microbatches: the number of pieces of the batch that are computed one after the other.
      mesh: the device mesh.
      shardings: the shardings of the parameters.

    Returns:
      ((loss, aux), gradient): aux of the last microbatch, and a tree like `params`, with
      `IndexedSlices` for tables of `lookups`.
    """
    every, specs = flatten_dict(params), flatten_dict(shardings)
    others = {path: x for path, x in every.items() if path not in lookups}
    rows = read_embeddings(params, lookups, mesh, BATCH_SPEC)

    def loss_of(others: dict, rows: dict, batch: Batch) -> tuple[jax.Array, Any]:
        return loss(unflatten_dict({**every, **others}), rows, batch)

    def differentiate(batch: Batch, rows: dict) -> tuple[tuple[jax.Array, Any], dict, dict]:
        value_and_grad = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
        value, (gradient, of_rows) = value_and_grad(others, rows, batch)
        # Constrain here: otherwise XLA all-reduces the whole gradient although each device updates
        # only its shard.
        gradient = jax.lax.with_sharding_constraint(
            gradient, {path: specs[path] for path in others}
        )
        return value, gradient, of_rows

    if microbatches == 1:
        value, gradient, of_rows = differentiate(batch, rows)
    else:
        value, gradient, of_rows = _sum_pieces(differentiate, batch, rows, others, microbatches)
    for path, row in flatten_dict(of_rows).items():
        lookup = lookups[path]
        if microbatches > 1:  # which may share items
            lookup = lookup._replace(unique_ids=False)
        gradient[path] = sparse_gradient(row, lookup, len(every[path]), mesh)
    return value, unflatten_dict(gradient)


def _sum_pieces(
    differentiate: Callable, batch: Batch, rows: dict, params: dict, count: int
) -> tuple[tuple[jax.Array, Any], dict, dict]:
    """Returns what `differentiate` would of the whole batch, computed from its microbatches."""

    def add(total: tuple[jax.Array, dict], piece: tuple[Batch, dict]) -> tuple[Any, Any]:
        (loss, aux), gradient, of_rows = differentiate(*piece)
        return jax.tree.map(jnp.add, total, (loss, gradient)), (aux, of_rows)

    start = jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, params)
    pieces = cut_batch(batch, count), cut(rows, count)
    (loss, gradient), (aux, of_rows) = jax.lax.scan(add, start, pieces)
    return (loss, jax.tree.map(lambda x: x[-1], aux)), gradient, join(of_rows)
