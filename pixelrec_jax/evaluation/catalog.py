"""The catalogue as vectors: every item is encoded once, row-sharded over all devices."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from pixelrec_jax.data.graph import Resident
from pixelrec_jax.data.pipeline import CatalogBatches, ItemStore
from pixelrec_jax.data.types import Array, Items
from pixelrec_jax.data.workers import iterate
from pixelrec_jax.parallel import tables
from pixelrec_jax.parallel.resident import with_resident_rows
from pixelrec_jax.parallel.sharding import (
    CATALOG_SPEC,
    local_shards,
    make_global_arrays,
    num_shards,
    shapes,
    unshard_params,
)
from pixelrec_jax.recommender import Recommender


class CatalogEncoder:
    """Encodes all items in steps of one compiled function that all calls share.

    Attributes:
      source: the items of each step.
    """

    def __init__(
        self,
        model: Recommender,
        store: ItemStore | None,
        resident: Resident,
        config: ConfigDict,
        mesh: Mesh,
        *,
        num_items: int,
    ):
        """Takes `num_items`, which counts padding and, if the task has one, the mask item."""
        self.mesh, self._data, self._resident = mesh, config.data, resident
        self.source = CatalogBatches(
            num_items,
            store,
            chunk=config.eval.encode_batch_size,
            num_shards=num_shards(mesh, CATALOG_SPEC),
            local_shards=local_shards(mesh, CATALOG_SPEC),
        )

        def encode_items(
            variables: dict, resident: Resident, items: Items
        ) -> Float[Array, "G C E"]:
            items = with_resident_rows(items, resident, mesh, CATALOG_SPEC)
            variables = with_rows(variables, model.embedding_lookups(items=items), mesh)
            return nn.apply(Recommender.encode_items, model)(variables, items)

        def encode(
            variables: dict,
            catalog: Float[Array, "G R E"],
            resident: Resident,
            items: Items,
            start: Int[Array, ""],
        ) -> Float[Array, "G R E"]:
            vector = encode_items(variables, resident, items)
            return jax.lax.dynamic_update_slice(catalog, vector, (0, start, 0))

        rows = NamedSharding(mesh, CATALOG_SPEC)
        self._encode = jax.jit(encode, donate_argnums=1, out_shardings=rows)
        self._encode_items = encode_items

    def encode(
        self, variables: dict, advance: Callable[[int], None] = lambda _: None
    ) -> Float[Array, "G R E"]:
        """Returns every item's vector, float32, row-sharded over all devices.

        `advance` gets 1 after each step.
        """
        source, data = self.source, self._data
        catalog = None
        # Threads are enough: encoding a catalogue is short, and processes start slowly.
        with iterate(
            source,
            start=0,
            stop=len(source),
            workers=0,
            threads=data.threads,
            prefetch=data.prefetch,
        ) as batches:
            for step, items in enumerate(batches):
                items = make_global_arrays(items, self.mesh, CATALOG_SPEC)
                if catalog is None:
                    catalog = self._empty(variables, items)
                start = step * source.chunk
                catalog = self._encode(variables, catalog, self._resident, items, start)
                advance(1)
        assert catalog is not None, "a catalogue has at least one chunk: that of the padding item"
        return catalog

    def shape(self, variables: dict) -> jax.ShapeDtypeStruct:
        """Returns the shape and sharding of what `encode` returns; `variables` may be shapes."""
        return self._shape(variables, shapes(self.source[0], self.mesh, CATALOG_SPEC))

    def lower(self, variables: dict) -> jax.stages.Lowered:
        """Returns the lowered program of a step on every device; `variables` may be shapes."""
        items = shapes(self.source[0], self.mesh, CATALOG_SPEC)
        catalog = self._shape(variables, items)
        return self._encode.lower(variables, catalog, self._resident, items, 0)

    def _empty(self, variables: dict, items: Items) -> Float[Array, "G R E"]:
        catalog = self._shape(variables, items)
        zeros = partial(jnp.zeros, catalog.shape, catalog.dtype)
        return jax.jit(zeros, out_shardings=catalog.sharding)()

    def _shape(self, variables: dict, items: Items) -> jax.ShapeDtypeStruct:
        encoded = jax.eval_shape(self._encode_items, variables, self._resident, items)
        width = encoded.shape[-1]
        shape = (self.source.num_shards, self.source.rows_per_shard, width)
        rows = NamedSharding(self.mesh, CATALOG_SPEC)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=rows)


def with_rows(variables: dict, lookups: tables.Lookups, mesh: Mesh) -> dict:
    """Returns the variables that layers compute with, and the rows that the lookups read."""
    params = variables["params"]
    rows = tables.read_embeddings(params, lookups, mesh, CATALOG_SPEC)
    return {**variables, "params": unshard_params(params, mesh), tables.COLLECTION: rows}
