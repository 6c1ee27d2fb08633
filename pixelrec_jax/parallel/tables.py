"""Tables of which a batch reads a few rows: they are differentiated by row.

As an array the gradient of such a table is zeros but for those rows. Filling and reading it would
take much of the time of a step on ids, and sending it to other devices even more.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pixelrec_jax.parallel.sharding import REPLICATED, TABLE_SPEC, fit_spec, num_shards, replicate

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
            path: take_rows(flat[path], lookup.ids, mesh, rows=TABLE_SPEC, batch=batch)
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
        row = replicate(row.reshape(-1, table.shape[-1]), mesh)
        gradient[path], ids[path] = row, replicate(lookup.ids.reshape(-1), mesh)
        if not lookup.distinct:
            ids[path], place = jnp.unique(
                ids[path], return_inverse=True, size=ids[path].size, fill_value=len(table)
            )
            gradient[path] = jax.ops.segment_sum(
                gradient[path], place.reshape(-1), num_segments=len(place)
            )
    return unflatten_dict(gradient), unflatten_dict(ids)


def pad_rows(params: dict, mesh: Mesh) -> dict:
    """Returns the parameters with rows of zeros after those of tables, so that they divide."""
    parts = num_shards(mesh, TABLE_SPEC)
    return _map_tables(lambda x: jnp.pad(x, ((0, -len(x) % parts), (0, 0))), params)


def _map_tables(change: Callable[[jax.Array], jax.Array], params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: change(x) if path[-1].key == "table" else x, params
    )


def own_rows(ids: jax.Array, count: int, rows: PartitionSpec) -> jax.Array:
    """Returns where in a device's `count` rows ids are; `count`, past the end, for those of others.

    Called within `shard_map`, for an array split by `rows`. Negative ones would count from the end.
    """
    own = ids - jax.lax.axis_index(rows[0]) * count
    return jnp.where((own >= 0) & (own < count), own, count)


def take_rows(
    table: jax.Array, ids: jax.Array, mesh: Mesh, *, rows: PartitionSpec, batch: PartitionSpec
) -> jax.Array:
    """Returns rows of a sharded table, without gathering it.

    Args:
      table: [N, D], split by `rows`.
      ids: int32[B, ...], split by `batch`; they must be below N.
      mesh: the device mesh.
      rows, batch: specs of one entry, for the leading axis.

    Returns:
      [B, ..., D], split by `batch`.
    """
    if num_shards(mesh, rows) == 1:
        return table[ids]
    # Devices that share a table and differ in ids: each asks all of them and sums what is its own.
    asking = tuple(axis for axis in rows[0] if axis in batch[0])
    alike = tuple(axis for axis in rows[0] if axis not in batch[0])

    def shard(table: jax.Array, ids: jax.Array) -> jax.Array:
        ids = jax.lax.all_gather(ids, asking, tiled=True) if asking else ids
        vector = table.at[own_rows(ids, len(table), rows)].get(mode="fill", fill_value=0)
        vector = jax.lax.psum(vector, alike) if alike else vector
        if not asking:
            return vector
        return jax.lax.psum_scatter(vector, asking, scatter_dimension=0, tiled=True)

    return jax.shard_map(
        shard, mesh=mesh, in_specs=(rows, batch), out_specs=batch, check_vma=False
    )(table, ids)


def add_rows(table: jax.Array, ids: jax.Array, values: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns a table [N, D], split by rows, with values [M, D] added to the rows ids int32[M].

    Ids from N on are dropped. Every device is given all values and adds those of its rows.
    """
    if num_shards(mesh, TABLE_SPEC) == 1:
        return table.at[ids].add(values)

    def shard(table: jax.Array, ids: jax.Array, values: jax.Array) -> jax.Array:
        return table.at[own_rows(ids, len(table), TABLE_SPEC)].add(values, mode="drop")

    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(TABLE_SPEC, REPLICATED, REPLICATED),
        out_specs=TABLE_SPEC,
        check_vma=False,
    )(table, ids, values)


def split_by_columns(params: dict, mesh: Mesh) -> dict:
    """Returns the parameters with tables split by columns instead of rows, if they divide.

    Sums of rows along the edges of a graph then stay on a device. With "tensor" above 1 the tables
    are gathered on the way.
    """
    # Not over "tensor", too: with data, fsdp and tensor all above 1, XLA (jax 0.10.2) then compiles
    # a step that gives another loss.
    spec = PartitionSpec(None, "fsdp")

    def split(x: jax.Array) -> jax.Array:
        columns = NamedSharding(mesh, fit_spec(spec, x.shape, mesh, small=False))
        return jax.lax.with_sharding_constraint(x, columns)

    return _map_tables(split, params)
