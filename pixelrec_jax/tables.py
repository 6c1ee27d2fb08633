"""Tables of which a batch reads a few rows: they are differentiated by row.

As an array the gradient of such a table is zeros but for those rows. Filling and reading it would
take much of the time of a step on ids, and sending it to other devices even more.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, PartitionSpec

from pixelrec_jax.sharding import TABLE_ROWS, gather, take_rows

COLLECTION = "rows"  # of variables: the rows that a train step has looked up already

Shape = tuple[int, ...]
Path = tuple[str, ...]


class Lookup(NamedTuple):
    """The ids int32[...] of the rows that a batch reads.

    distinct: whether no id but PAD occurs twice, and PAD with a gradient only once.
    """

    ids: jax.Array
    distinct: bool


Lookups = Mapping[Path, Lookup]  # by the path of the table in the parameters


def look_up(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: Shape, ids: jax.Array
) -> jax.Array:
    """Returns float32[..., D], rows of a module's parameter; `Lookups` must say the same ids."""
    if module.has_variable(COLLECTION, name):
        return module.get_variable(COLLECTION, name).reshape(*ids.shape, -1)
    if module.has_variable("params", name):  # perhaps with rows more than `shape`, see `pad_rows`
        return module.get_variable("params", name)[ids]
    return module.param(name, init, shape, jnp.float32)[ids]


def read_rows(params: dict, lookups: Lookups, mesh: Mesh, batch: PartitionSpec) -> dict:
    """Returns the rows that lookups read, as variables of the collection.

    Args:
      params: whose tables are split over the mesh by rows.
      lookups: whose ids are split by `batch`.
      mesh: the device mesh.
      batch: a spec of one entry, which the rows have, too.
    """
    flat = flatten_dict(params)
    return unflatten_dict(
        {
            path: take_rows(flat[path], lookup.ids, mesh, rows=TABLE_ROWS, batch=batch)
            for path, lookup in lookups.items()
        }
    )


def by_row(gradient: dict, rows: dict, lookups: Lookups, mesh: Mesh) -> tuple[dict, dict]:
    """Puts the gradients of rows in the place of their tables'.

    Args:
      gradient: of the parameters.
      rows: gradient of the result of `read_rows`.
      lookups: as for it. Gradients of a row that is read repeatedly are summed.
      mesh: the device mesh.

    Returns:
      The gradient with float32[M, D] in the place of tables, and a tree of the same paths that has
      the rows' ids int32[M] there and None elsewhere, both whole on every device. An id past the
      table stands for no row.
    """
    gradient, ids = flatten_dict(gradient), dict.fromkeys(flatten_dict(gradient))
    for path, row in flatten_dict(rows).items():
        table, lookup = gradient[path], lookups[path]
        row = gather(row.reshape(-1, table.shape[-1]), mesh)
        gradient[path], ids[path] = row, gather(lookup.ids.reshape(-1), mesh)
        if not lookup.distinct:
            ids[path], place = jnp.unique(
                ids[path], return_inverse=True, size=ids[path].size, fill_value=len(table)
            )
            gradient[path] = jax.ops.segment_sum(
                gradient[path], place.reshape(-1), num_segments=len(place)
            )
    return unflatten_dict(gradient), unflatten_dict(ids)
