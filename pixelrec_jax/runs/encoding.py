"""What a frozen encoder makes of many items, in their order, computed on all devices of a mesh."""

import math
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pixelrec_jax.data.pipeline import ItemStore, item_batch
from pixelrec_jax.data.types import PAD, Items
from pixelrec_jax.data.workers import iterate
from pixelrec_jax.parallel.sharding import (
    CATALOG_SPEC,
    make_global_arrays,
    make_replicated_arrays,
)
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.system.errors import UserError

# Each thread decodes one batch ahead; the limit bounds the memory on machines with many cores.
_THREADS = min(os.cpu_count() or 1, 16)


def encode_in_order(
    encode: Callable[[dict, Items], jax.Array],
    variables: dict,
    ids: np.ndarray,
    store: ItemStore,
    *,
    mesh: Mesh,
    batch_size: int,
    dtype: DTypeLike,
    what: str,
    remedy: str,
) -> Iterator[np.ndarray]:
    """Yields what `encode` makes of items, batch by batch, in host memory.

    Args:
      encode: function of the variables and of items with one leading axis, which it keeps.
      variables: its variables, in host memory or on one device.
      ids: int32[n], the items in the order of the result.
      store: what the encoder looks at.
      mesh: the devices, all of this process.
      batch_size: number of items that each device encodes at once, fewer if there are only few.
      dtype: the type of the result.
      what: what the result is, for the bar of progress and for errors.
      remedy: what to do if a number is not finite.

    Yields:
      dtype[b, ...], b <= `batch_size` * devices.

    Raises:
      UserError: a number is not finite.
    """

    @jax.jit
    def encode_batch(variables: dict, items: Items) -> jax.Array:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), items)
        return encode(variables, flat).astype(dtype)

    source = _Batches(ids, store, num_shards=mesh.size, per_shard=batch_size)
    variables = make_replicated_arrays(variables, mesh)
    with (
        iterate(
            source, start=0, stop=len(source), workers=0, threads=_THREADS, prefetch=_THREADS
        ) as batches,
        progress_bar(what, len(source)) as advance,
    ):
        for index, items in enumerate(batches):
            known = source.ids(index)
            batch = make_global_arrays(items, mesh, CATALOG_SPEC)
            rows = np.asarray(encode_batch(variables, batch))[: len(known)]
            finite = np.isfinite(rows).reshape(len(known), -1).all(axis=1)
            if not finite.all():
                raise UserError(
                    f"the {what} of item {known[~finite][0]} are not finite in {np.dtype(dtype)}; "
                    f"{remedy}"
                )
            yield rows
            advance(1)


class _Batches:
    """Batches [G, B] of items in their order; padding fills the last batch."""

    def __init__(self, ids: np.ndarray, store: ItemStore, *, num_shards: int, per_shard: int):
        self._ids, self._store = ids, store
        # Smaller batches for few items.
        self._shape = (num_shards, min(per_shard, -(-len(ids) // num_shards)))

    def __len__(self) -> int:
        return -(-len(self._ids) // math.prod(self._shape))

    def ids(self, index: int) -> np.ndarray:
        """Returns the items of a batch without padding, int32[b]."""
        size = math.prod(self._shape)
        return self._ids[index * size :][:size]

    def __getitem__(self, index: int) -> Items:
        ids = self.ids(index)
        ids = np.pad(ids, (0, math.prod(self._shape) - len(ids)), constant_values=PAD)
        return item_batch(ids.reshape(self._shape), self._store)
