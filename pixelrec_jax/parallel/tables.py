"""Embedding tables: a batch reads a few rows, and the sparse gradient holds only these rows.

A dense gradient would be zero in all other rows. Writing and reading it would take much of the time
of a step of an id model, and sending it to other devices even more.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pixelrec_jax.data.types import PAD, Array
from pixelrec_jax.parallel.sharding import (
    REPLICATED,
    TABLE_SPEC,
    fit_spec,
    num_shards,
    replicate,
)

COLLECTION = "embeddings"  # collection of variables: the rows that a train step has looked up

Shape = tuple[int, ...]
Path = tuple[str, ...]


class IndexedSlices(struct.PyTreeNode):
    """The gradient of a table [N, D] that is zero except in some rows.

    Attributes:
      ids: int32[M], distinct row indices; N, the index after the last row, stands for no row and
        may repeat.
      values: float32[M, D], the gradients of these rows.
    """

    ids: jax.Array
    values: jax.Array


class EmbeddingLookup(NamedTuple):
    """The rows of a table that a batch reads.

    Attributes:
      ids: int32[...], row indices.
      unique_ids: whether no id repeats except PAD, which is then the first; only that one may have
        a gradient.
    """

    ids: Array
    unique_ids: bool


Lookups = Mapping[Path, EmbeddingLookup]  # by the path of the table in the parameters


def embedding_lookup(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: Shape, ids: Array
) -> jax.Array:
    """Returns the rows float32[..., D] with ids int32[...] of a module's table.

    `Recommender.embedding_lookups` declares the same ids. A train step gives their rows as
    variables of `COLLECTION`, so that it can differentiate the rows and not the table.
    """
    if module.has_variable(COLLECTION, name):
        return module.get_variable(COLLECTION, name).reshape(*ids.shape, -1)
    if module.has_variable("params", name):  # may have more rows than `shape`: `pad_rows`
        return module.get_variable("params", name)[ids]
    return module.param(name, init, shape, jnp.float32)[ids]


def read_embeddings(params: dict, lookups: Lookups, mesh: Mesh, spec: PartitionSpec) -> dict:
    """Returns the rows that lookups read, as variables of `COLLECTION`.

    Args:
      params: parameters, with tables sharded over the mesh by rows.
      lookups: lookups with ids sharded by `spec`.
      mesh: the device mesh.
      spec: a spec of one entry, for the leading axis of ids and rows.
    """
    flat = flatten_dict(params)
    return unflatten_dict(
        {
            path: take_rows(flat[path], lookup.ids, mesh, rows=TABLE_SPEC, batch=spec)
            for path, lookup in lookups.items()
        }
    )


def sparse_gradient(
    rows: jax.Array, lookup: EmbeddingLookup, num_rows: int, mesh: Mesh
) -> IndexedSlices:
    """Returns the gradient of a table from those of its looked-up rows, replicated on all devices.

    If a row was read several times, its gradients are summed.
    """
    values = replicate(rows.reshape(-1, rows.shape[-1]), mesh)
    ids = replicate(jnp.reshape(lookup.ids, -1), mesh)
    if lookup.unique_ids:
        repeated = (ids == PAD) & (jnp.arange(len(ids)) > 0)
        return IndexedSlices(jnp.where(repeated, num_rows, ids), values)
    ids, place = jnp.unique(ids, return_inverse=True, size=ids.size, fill_value=num_rows)
    return IndexedSlices(ids, jax.ops.segment_sum(values, place.reshape(-1), len(ids)))


def is_sparse(x: Any) -> bool:
    """Returns whether a node of a gradient is `IndexedSlices`: the `is_leaf` for tree maps."""
    return isinstance(x, IndexedSlices)


def pad_rows(params: dict, mesh: Mesh) -> dict:
    """Returns the parameters with zero rows added to tables, so that their rows divide evenly."""
    shards = num_shards(mesh, TABLE_SPEC)
    return _map_tables(lambda x: jnp.pad(x, ((0, -len(x) % shards), (0, 0))), params)


def _map_tables(change: Callable[[jax.Array], jax.Array], params: dict) -> dict:
    return jax.tree_util.tree_map_with_path(
        lambda path, x: change(x) if path[-1].key == "table" else x, params
    )


def own_rows(ids: Array, count: int, rows: PartitionSpec) -> jax.Array:
    """Returns the indices of ids in this device's shard of `count` rows; `count` for other ids.

    Called within `shard_map`, for an array sharded by `rows`. The index for other ids is not
    negative, because negative indices count from the end.
    """
    own = ids - jax.lax.axis_index(rows[0]) * count
    return jnp.where((own >= 0) & (own < count), own, count)


def take_rows(
    table: jax.Array, ids: Array, mesh: Mesh, *, rows: PartitionSpec, batch: PartitionSpec
) -> jax.Array:
    """Returns rows of a sharded table, without an all-gather of the table.

    Args:
      table: [N, D], sharded by `rows`.
      ids: int32[B, ...], sharded by `batch`; they must be below N.
      mesh: the device mesh.
      rows, batch: specs of one entry, for the leading axis.

    Returns:
      [B, ..., D], sharded by `batch`.
    """
    if num_shards(mesh, rows) == 1:
        return table[ids]
    # Along the axes `asking`, devices hold different ids: all ids are gathered, every device looks
    # up those of its own rows, and the results are summed and scattered back.
    # Along the axes `alike`, devices hold the same ids: the results are only summed.
    of_batch = batch[0] or ()
    asking = tuple(axis for axis in rows[0] if axis in of_batch)
    alike = tuple(axis for axis in rows[0] if axis not in of_batch)

    def shard(table: jax.Array, ids: Array) -> jax.Array:
        ids = jax.lax.all_gather(ids, asking, tiled=True) if asking else ids
        vector = table.at[own_rows(ids, len(table), rows)].get(mode="fill", fill_value=0)
        vector = jax.lax.psum(vector, alike) if alike else vector
        if not asking:
            return vector
        return jax.lax.psum_scatter(vector, asking, scatter_dimension=0, tiled=True)

    return jax.shard_map(
        shard, mesh=mesh, in_specs=(rows, batch), out_specs=batch, check_vma=False
    )(table, ids)


def gather_rows(table: jax.Array, ids: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns the rows ids int32[M] of a table [N, D], sharded by rows, replicated; 0 for id N."""
    rows = take_rows(table, ids, mesh, rows=TABLE_SPEC, batch=PartitionSpec(None))
    return jnp.where((ids < len(table))[:, None], rows, 0)


def add_rows(table: jax.Array, ids: jax.Array, values: jax.Array, mesh: Mesh) -> jax.Array:
    """Returns a table [N, D], sharded by rows, with values [M, D] added to the rows ids int32[M].

    Ids of N or more are dropped. Every device has all values and adds those of its own rows.
    """

    def add(own: jax.Array, values: jax.Array, table: jax.Array) -> tuple[jax.Array]:
        return (table.at[own].add(values, mode="drop"),)

    (table,) = _on_own_rows(add, ids, values, (table,), mesh)
    return table


def change_rows(
    change: Callable[..., tuple[jax.Array, ...]],
    gradient: IndexedSlices,
    tables: tuple[jax.Array, ...],
    mesh: Mesh,
) -> tuple[jax.Array, ...]:
    """Returns tables [N, D], sharded by rows, with other values in the rows of a gradient.

    No other row is read or written. Every device has the whole gradient and changes its own rows.

    Args:
      change: returns the new rows [M, D] of each table from the values [M, D] of the gradient and
        the tables' rows [M, D]. It treats each row apart: those of other devices are zeros.
      gradient: its ids say which rows change.
      tables: all of one length.
      mesh: the device mesh.
    """

    def replace(own: jax.Array, values: jax.Array, *tables: jax.Array) -> tuple[jax.Array, ...]:
        old = (x.at[own].get(mode="fill", fill_value=0) for x in tables)
        new = change(values, *old)
        return tuple(x.at[own].set(row, mode="drop") for x, row in zip(tables, new, strict=True))

    return _on_own_rows(replace, gradient.ids, gradient.values, tables, mesh)


def _on_own_rows(
    change: Callable[..., tuple[jax.Array, ...]],
    ids: jax.Array,
    values: jax.Array,
    tables: tuple[jax.Array, ...],
    mesh: Mesh,
) -> tuple[jax.Array, ...]:
    """Returns change(own, values, *shards) on every device.

    `own` are the indices in its shard of the rows ids, past the end for rows of other devices.
    """
    if num_shards(mesh, TABLE_SPEC) == 1:
        return change(ids, values, *tables)

    def shard(ids: jax.Array, values: jax.Array, *tables: jax.Array) -> tuple[jax.Array, ...]:
        return change(own_rows(ids, len(tables[0]), TABLE_SPEC), values, *tables)

    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(REPLICATED, REPLICATED, *(TABLE_SPEC for _ in tables)),
        out_specs=tuple(TABLE_SPEC for _ in tables),
        check_vma=False,
    )(ids, values, *tables)


def split_by_columns(params: dict, mesh: Mesh) -> dict:
    """Returns the parameters with tables sharded by columns instead of rows, if these divide.

    Sums of rows along the edges of a graph then need no communication. With "tensor" above 1 the
    tables are all-gathered along it.
    """
    # Not also over "tensor": with data, fsdp and tensor all above 1, XLA (jax 0.10.2) would compile
    # a step with a different loss.
    spec = PartitionSpec(None, "fsdp")

    def split(x: jax.Array) -> jax.Array:
        columns = NamedSharding(mesh, fit_spec(spec, x.shape, mesh, small=False))
        return jax.lax.with_sharding_constraint(x, columns)

    return _map_tables(split, params)
