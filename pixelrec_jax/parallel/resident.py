"""Arrays that stay on the devices, with a row for each item."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pixelrec_jax.data.graph import Resident
from pixelrec_jax.data.types import Items
from pixelrec_jax.parallel.sharding import CATALOG_SPEC
from pixelrec_jax.parallel.tables import take_rows


def sharded_rows(rows: jax.ShapeDtypeStruct, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Returns the shape of an array with rows that fill up the last device, and its sharding."""
    count, *shape = rows.shape
    filled = (-(-count // mesh.size) * mesh.size, *shape)
    return jax.ShapeDtypeStruct(filled, rows.dtype, sharding=NamedSharding(mesh, CATALOG_SPEC))


def with_resident_rows(items: Items, resident: Resident, mesh: Mesh, batch: PartitionSpec) -> Items:
    """Returns items, sharded by `batch`, with their rows of resident arrays, if there are any."""
    if resident.activation is None:
        return items
    rows = take_rows(resident.activation, items.id, mesh, rows=CATALOG_SPEC, batch=batch)
    return items.replace(activation=rows)
