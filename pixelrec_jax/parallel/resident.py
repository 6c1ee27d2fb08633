"""Reading rows of arrays that stay on the devices."""

from jax.sharding import Mesh, PartitionSpec

from pixelrec_jax.data.graph import Resident
from pixelrec_jax.data.types import Items
from pixelrec_jax.parallel.sharding import CATALOG_SPEC
from pixelrec_jax.parallel.tables import take_rows


def with_resident_rows(items: Items, resident: Resident, mesh: Mesh, batch: PartitionSpec) -> Items:
    """Returns items, sharded by `batch`, with their rows of resident arrays, if there are any."""
    if resident.activation is None:
        return items
    rows = take_rows(resident.activation, items.id, mesh, rows=CATALOG_SPEC, batch=batch)
    return items.replace(activation=rows)
