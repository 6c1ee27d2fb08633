"""A device's rows of the catalogue, scored in chunks that never exist as a whole."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int, Shaped

from pixelrec_jax.data.types import PAD, Array, Score
from pixelrec_jax.parallel.sharding import AXES, CATALOG_SPEC, REPLICATED
from pixelrec_jax.parallel.tables import own_rows

_Result = TypeVar("_Result")

_GROUP = 32  # columns of which only the largest is sorted at first


class Chunk(NamedTuple):
    """A chunk of a device's rows with their scores.

    Attributes:
      scores: float32[Q, C], -inf where an item is masked or `counts` is false.
      ids: int32[C], the items, ascending.
      counts: bool[C], false for rows past the catalogue and for rows of the chunk before.
    """

    scores: jax.Array
    ids: jax.Array
    counts: jax.Array


class Chunks:
    """A device's rows in chunks of one size, scored on access; to be used within `shard_map`.

    If the size does not divide the rows, the last chunk begins early, and the rows that it shares
    with the chunk before do not count in it.
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
        self._score, self._query, self._table = score, query, table
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
        scores = jnp.where(real, self._score(self._query, items), -jnp.inf)
        user, place = jnp.arange(len(self._query))[:, None], self.place(self._seen, index)
        return Chunk(scores.at[user, place].set(-jnp.inf, mode="drop"), ids, counts)

    def place(self, ids: Int[Array, "*ids"], index: Int[Array, ""]) -> Int[Array, "*ids"]:
        """Returns the position of each id in the chunk, or C if the chunk does not count the id."""
        own, start = own_rows(ids, self.rows, CATALOG_SPEC), self._start(index)
        inside = (own >= index * self.size) & (own < start + self.size)
        return jnp.where(inside, own - start, self.size)

    def _start(self, index: Int[Array, ""]) -> Int[jax.Array, ""]:
        return jnp.minimum(index * self.size, self.rows - self.size)


def best_of_chunk(
    scores: Float[Array, "Q C"], ids: Int[Array, " C"], k: int
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Returns the k largest scores of a chunk, largest first, and their items; NaN counts as inf.

    Of equal scores the lower id comes first. Most scores are not sorted. Each of the k best is in
    one of the k groups of columns with the largest maxima: if its group were not among them, each
    of these would hold an item that beats it.
    """
    # NaN has no place in an order: with it, top_k may return any indices.
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    if scores.shape[1] <= 2 * k * _GROUP:
        largest, place = jax.lax.top_k(scores, k)
        return largest, ids[place]
    scores = jnp.pad(scores, ((0, 0), (0, -scores.shape[1] % _GROUP)), constant_values=-jnp.inf)
    groups = scores.reshape(len(scores), -1, _GROUP)
    _, chosen = jax.lax.top_k(groups.max(axis=2), k)
    chosen = jnp.sort(chosen, axis=1)  # top_k is stable, so that ties stay in the order of ids
    column = (chosen[..., None] * _GROUP + jnp.arange(_GROUP)[None, None]).reshape(len(scores), -1)
    return best(jnp.take_along_axis(scores, column, axis=1), ids[column], k)


def best(
    scores: Float[Array, "Q candidates"], ids: Int[Array, "Q candidates"], k: int
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    """Returns the k largest scores, largest first, and their items; of equal ones the first."""
    largest, place = jax.lax.top_k(scores, k)
    return largest, jnp.take_along_axis(ids, place, axis=1)


def map_shards(
    shard: Callable[..., _Result],
    mesh: Mesh,
    catalog: Float[Array, "G R E"],
    *replicated: Shaped[Array, "Q ..."],
) -> _Result:
    """Returns the result, equal on all devices, of a function of each device's rows."""
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(CATALOG_SPEC, *(REPLICATED for _ in replicated)),
        out_specs=REPLICATED,
        check_vma=False,
    )(catalog, *replicated)
