"""A device's rows of the catalogue, scored in chunks that never exist as a whole."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from pixelrec_jax.data.types import PAD, Array, Score
from pixelrec_jax.parallel.sharding import AXES, CATALOG_SPEC
from pixelrec_jax.parallel.tables import own_rows


class Chunk(NamedTuple):
    """A chunk of a device's rows with their scores.

    Attributes:
      scores: float32[Q, C], -inf where an item is masked or `counts` is false.
      ids: int32[C], the items, ascending.
      counts: bool[C], false for rows past the catalogue and for rows of the chunk before.
      items: float32[C, E], the rows.
    """

    scores: jax.Array
    ids: jax.Array
    counts: jax.Array
    items: jax.Array


class Chunks:
    """A device's rows in chunks of one size, scored on access; to be used within `shard_map`.

    If the size does not divide the rows, the last chunk begins early, and the rows that it shares
    with the chunk before do not count in it.

    Attributes:
      query: float32[Q, D], as given.
      rows: R, the rows of this device.
      size: C, the rows of a chunk.
    """

    def __init__(
        self,
        score: Score,
        query: Float[Array, "Q D"],
        table: Float[Array, "R E"],
        seen: Int[Array, "Q S"],
        num_items: int,
        size: int,
    ):
        """Takes the rows of a device in `table`; for the other arguments see `retrieve`."""
        self._score, self.query, self._table = score, query, table
        self._seen, self._num_items = seen, num_items
        self.rows = len(table)
        self.size = min(size, self.rows)

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def __getitem__(self, index: Int[Array, ""]) -> Chunk:
        start = self._start(index)
        own = start + jnp.arange(self.size)
        ids = jax.lax.axis_index(AXES) * self.rows + own
        counts = (own >= index * self.size) & (ids < self._num_items)
        items = jax.lax.dynamic_slice_in_dim(self._table, start, self.size)
        real = (counts & (ids != PAD))[None]
        scores = jnp.where(real, self._score(self.query, items), -jnp.inf)
        user, place = jnp.arange(len(self.query))[:, None], self.place(self._seen, index)
        return Chunk(scores.at[user, place].set(-jnp.inf, mode="drop"), ids, counts, items)

    def place(self, ids: Int[Array, "*ids"], index: Int[Array, ""]) -> Int[Array, "*ids"]:
        """Returns the position of each id in the chunk, or C if the chunk does not count the id."""
        own, start = own_rows(ids, self.rows, CATALOG_SPEC), self._start(index)
        inside = (own >= index * self.size) & (own < start + self.size)
        return jnp.where(inside, own - start, self.size)

    def get(self, ids: Int[Array, "*ids"]) -> Float[Array, "*ids E"]:
        """Returns the rows of items, zeros for those of other devices."""
        own = own_rows(ids, self.rows, CATALOG_SPEC)
        return jnp.asarray(self._table).at[own].get(mode="fill", fill_value=0)

    def _start(self, index: Int[Array, ""]) -> Int[jax.Array, ""]:
        return jnp.minimum(index * self.size, self.rows - self.size)
