"""The gradient of a training loss, sparse for tables whose rows are looked up."""

from collections.abc import Callable
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from pixelrec_jax.parallel.sharding import BATCH_SPEC
from pixelrec_jax.parallel.tables import Lookups, read_embeddings, sparse_gradient


def value_and_sparse_grad(
    loss: Callable[[dict, dict], tuple[jax.Array, Any]],
    params: dict,
    lookups: Lookups,
    mesh: Mesh,
    shardings: dict,
) -> tuple[tuple[jax.Array, Any], dict]:
    """Returns a loss with its auxiliary output, and its gradient, sparse for tables of `lookups`.

    Args:
      loss: function of the parameters and of the looked-up rows, which are variables of
        `tables.COLLECTION`.
      params: the parameters to differentiate.
      lookups: the rows that are read; all other tables have dense gradients.
      mesh: the device mesh.
      shardings: the shardings of the parameters.

    Returns:
      ((loss, aux), gradient): a tree like `params`, with `IndexedSlices` for tables of `lookups`.
    """
    every, shardings = flatten_dict(params), flatten_dict(shardings)
    others = {path: x for path, x in every.items() if path not in lookups}

    def of_others(others: dict, rows: dict) -> tuple[jax.Array, Any]:
        return loss(unflatten_dict({**every, **others}), rows)

    rows = read_embeddings(params, lookups, mesh, BATCH_SPEC)
    differentiate = jax.value_and_grad(of_others, argnums=(0, 1), has_aux=True)
    value, (gradient, of_rows) = differentiate(others, rows)
    # Constrain here: otherwise XLA all-reduces the whole gradient although each device updates
    # only its shard.
    gradient = jax.lax.with_sharding_constraint(
        gradient, {path: shardings[path] for path in others}
    )
    for path, row in flatten_dict(of_rows).items():
        gradient[path] = sparse_gradient(row, lookups[path], len(every[path]), mesh)
    return value, unflatten_dict(gradient)
