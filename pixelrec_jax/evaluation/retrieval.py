"""Exact top k, and the rank of a target, over a row-sharded catalogue that is scored in chunks."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Shaped

from pixelrec_jax.data.types import PAD, Array, Score
from pixelrec_jax.parallel.sharding import AXES, CATALOG_SPEC, REPLICATED
from pixelrec_jax.parallel.tables import own_rows

UNRANKED = np.iinfo(np.int32).max  # the rank of a target that is in no list, beyond every k

_Result = TypeVar("_Result")


def retrieve(
    score: Score,
    query: Float[Array, "Q D"],
    catalog: Float[Array, "G R E"],
    seen: Int[Array, "Q S"],
    k: int,
    *,
    num_items: int,
    mesh: Mesh,
    chunk: int,
) -> tuple[Int[Array, "Q k"], Float[Array, "Q k"]]:
    """Returns the ids and scores of the exact top k, best first, seen items left out.

    Of equal scores the lower id comes first. Each device scores its own rows, so devices exchange
    only k candidates per user. The results are replicated. A user with fewer than k items left has
    PAD with a score of -inf in the last places. A score that is NaN counts and is returned as inf.

    Args:
      score: returns the scores of C rows of the catalogue for Q queries.
      query: a query for each user, float32.
      catalog: item vectors, float32, row-sharded; row 0 and the rows from N on are padding.
      seen: the items to leave out for each user, padded with PAD.
      k: length of the lists, at most N - 1.
      num_items: N, padding included.
      mesh: the device mesh.
      chunk: C, how many rows a device scores at once; it bounds the memory.
    """

    def shard(
        table: Float[Array, "1 R E"], query: Float[Array, "Q D"], seen: Int[Array, "Q S"]
    ) -> tuple[Int[Array, "Q k"], Float[Array, "Q k"]]:
        chunks = _Chunks(score, query, table[0], seen, num_items, chunk)
        kept = min(k, chunks.rows)

        def fold(
            index: Int[Array, ""], best: tuple[Float[Array, "Q kept"], Int[Array, "Q kept"]]
        ) -> tuple[Float[Array, "Q kept"], Int[Array, "Q kept"]]:
            here = chunks[index]
            # NaN has no place in an order: with it, top_k may return any indices.
            ordered = jnp.where(jnp.isnan(here.scores), jnp.inf, here.scores)
            scores, place = jax.lax.top_k(ordered, min(k, chunks.size))
            # Chunks and shards come in order of ids and top_k is stable, so ties stay in order.
            candidates = zip(best, (scores, here.ids[place]), strict=True)
            return _top(*(jnp.concatenate(pair, axis=1) for pair in candidates), kept)

        nothing = (
            jnp.full((len(query), kept), -jnp.inf),
            jnp.full((len(query), kept), PAD, jnp.int32),
        )
        best = jax.lax.fori_loop(0, len(chunks), fold, nothing)
        gathered = (jax.lax.all_gather(x, AXES, axis=1, tiled=True) for x in best)
        scores, ids = _top(*gathered, k)
        return jnp.where(jnp.isneginf(scores), PAD, ids), scores

    return _map_shards(shard, mesh, catalog, query, seen)


def target_rank(
    score: Score,
    query: Float[Array, "Q D"],
    catalog: Float[Array, "G R E"],
    seen: Int[Array, "Q S"],
    target: Int[Array, " Q"],
    *,
    num_items: int,
    mesh: Mesh,
    chunk: int,
) -> Int[Array, " Q"]:
    """Returns the place of each target in the order of `retrieve`, 1 = best, replicated.

    The catalogue is scored twice: first to read the target's score, then to count the items that
    beat it. Nothing is sorted. The same instruction of the compiled loop computes both, so the
    target's score never differs from itself in the last bit.

    An item with a NaN score beats every target, and a target with a NaN score loses to every item:
    a broken model never looks good. A masked target, with a score of -inf, is `UNRANKED`:
    `retrieve` lists it for no k, and a place among other masked items could count as a hit.

    Args:
      score, query, catalog, seen, num_items, mesh, chunk: see `retrieve`.
      target: an item for each query.
    """

    def shard(
        table: Float[Array, "1 R E"],
        query: Float[Array, "Q D"],
        seen: Int[Array, "Q S"],
        target: Int[Array, " Q"],
    ) -> Int[Array, " Q"]:
        chunks = _Chunks(score, query, table[0], seen, num_items, chunk)
        user = jnp.arange(len(query))

        def sweep(
            _: Int[Array, ""], state: tuple[Float[Array, " Q"], Int[Array, " Q"]]
        ) -> tuple[Float[Array, " Q"], Int[Array, " Q"]]:
            target_score, _ = state

            def fold(
                index: Int[Array, ""], sums: tuple[Float[Array, " Q"], Int[Array, " Q"]]
            ) -> tuple[Float[Array, " Q"], Int[Array, " Q"]]:
                here, (own, wins) = chunks[index], sums
                place = chunks.place(target, index)
                own += here.scores.at[user, place].get(mode="fill", fill_value=0)
                goal = target_score[:, None]
                tied = (here.scores == goal) & (here.ids[None] >= target[:, None])
                beats = here.counts[None] & ~((here.scores < goal) | tied)
                return own, wins + jnp.sum(beats, axis=1, dtype=jnp.int32)

            return jax.lax.psum(jax.lax.fori_loop(0, len(chunks), fold, zeros), AXES)

        zeros = (jnp.zeros(len(query)), jnp.zeros(len(query), jnp.int32))
        # The count of the first sweep is dropped: that sweep does not know the score yet.
        target_score, wins = jax.lax.fori_loop(0, 2, sweep, zeros)
        return jnp.where(jnp.isneginf(target_score), UNRANKED, 1 + wins)

    return _map_shards(shard, mesh, catalog, query, seen, target)


class _Chunk(NamedTuple):
    """A chunk of a device's rows with their scores.

    Attributes:
      scores: float32[Q, C], -inf where an item is masked or `counts` is false.
      ids: int32[C], the items, ascending.
      counts: bool[C], false for rows past the catalogue and for rows of the chunk before.
    """

    scores: jax.Array
    ids: jax.Array
    counts: jax.Array


class _Chunks:
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

    def __getitem__(self, index: Int[Array, ""]) -> _Chunk:
        start = self._start(index)
        own = start + jnp.arange(self.size)
        ids = jax.lax.axis_index(AXES) * self.rows + own
        counts = (own >= index * self.size) & (ids < self._num_items)
        items = jax.lax.dynamic_slice_in_dim(self._table, start, self.size)
        real = (counts & (ids != PAD))[None]
        scores = jnp.where(real, self._score(self._query, items), -jnp.inf)
        user, place = jnp.arange(len(self._query))[:, None], self.place(self._seen, index)
        return _Chunk(scores.at[user, place].set(-jnp.inf, mode="drop"), ids, counts)

    def place(self, ids: Int[Array, "*ids"], index: Int[Array, ""]) -> Int[Array, "*ids"]:
        """Returns the position of each id in the chunk, or C if the chunk does not count the id."""
        own, start = own_rows(ids, self.rows, CATALOG_SPEC), self._start(index)
        inside = (own >= index * self.size) & (own < start + self.size)
        return jnp.where(inside, own - start, self.size)

    def _start(self, index: Int[Array, ""]) -> Int[jax.Array, ""]:
        return jnp.minimum(index * self.size, self.rows - self.size)


def _top(
    scores: Float[Array, "Q candidates"], ids: Int[Array, "Q candidates"], k: int
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    best, place = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(ids, place, axis=1)


def _map_shards(
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
