"""Tables of which a batch reads a few rows: they are differentiated by row.

As an array the gradient of such a table is zeros but for those rows. Filling and reading it would
take much of the time of a step on ids, and sending it to other devices even more.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

COLLECTION = "rows"  # of variables: the rows that a train step has looked up already

Shape = tuple[int, ...]
Path = tuple[str, ...]
# The ids int32[...] of the rows that a batch reads, by the path of the table in the parameters.
Lookups = Mapping[Path, jax.Array]


def look_up(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: Shape, ids: jax.Array
) -> jax.Array:
    """Returns float32[..., D], rows of a module's parameter; `Lookups` must say the same ids."""
    if module.has_variable(COLLECTION, name):
        return module.get_variable(COLLECTION, name).reshape(*ids.shape, -1)
    return module.param(name, init, shape, jnp.float32)[ids]


def read_rows(params: dict, lookups: Lookups) -> dict:
    """Returns the rows that lookups read, as variables of the collection."""
    flat = flatten_dict(params)
    return unflatten_dict({path: flat[path][ids] for path, ids in lookups.items()})


def by_row(gradient: dict, rows: dict, lookups: Lookups) -> tuple[dict, dict]:
    """Puts the gradients of rows in the place of their tables'.

    Args:
      gradient: of the parameters.
      rows: gradient of the result of `read_rows`.
      lookups: as for it. Gradients of a row that is read repeatedly are summed.

    Returns:
      The gradient with float32[M, D] in the place of tables, and a tree of the same paths that has
      the rows' ids int32[M] there and None elsewhere. An id past the table stands for no row.
    """
    gradient, ids = flatten_dict(gradient), dict.fromkeys(flatten_dict(gradient))
    for path, row in flatten_dict(rows).items():
        table = gradient[path]
        unique, place = jnp.unique(
            lookups[path], return_inverse=True, size=lookups[path].size, fill_value=len(table)
        )
        row = row.reshape(-1, table.shape[-1])
        gradient[path] = jax.ops.segment_sum(row, place.reshape(-1), num_segments=len(row))
        ids[path] = unique
    return unflatten_dict(gradient), unflatten_dict(ids)
