"""Exact top k, and the rank of a target, over a row-sharded catalogue that is scored in chunks."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, Shaped

from pixelrec_jax.data.types import PAD, Array
from pixelrec_jax.parallel.sharding import AXES, CATALOG_SPEC, REPLICATED
from pixelrec_jax.parallel.tables import own_rows

UNRANKED = np.iinfo(np.int32).max  # the rank of a target that is in no list, beyond every k
Score = Callable[[Float[Array, "Q D"], Float[Array, "C E"]], Float[Array, "Q C"]]


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
    """Returns the exact top k of the catalogue with seen items masked; ties: lower id first.

    Each device scores its own rows, so devices exchange only k candidates per user.

    Args:
      score: gives the scores of C rows of the catalogue for Q queries.
      query: of users, float32.
      catalog: float32, row-sharded; row 0 and rows from `num_items` on are padding.
      seen: items to mask, padded with 0.
      k: length of the lists, at most N - 1.
      num_items: N.
      mesh: the device mesh.
      chunk: C, how many rows a device scores at once, which bounds the memory.

    Returns:
      ids and scores, best first, replicated. A user with fewer than k
      items left has PAD with a score of -inf in the last places.
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
            scores, place = jax.lax.top_k(here.scores, min(k, chunks.size))
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

    The catalogue is scored twice: to read the target's score, then to count the items that beat it,
    without sorting. Both times by the same instruction of the compiled loop, so that the target's
    score never differs from itself in the last bit.

    Args: as of `retrieve`, and `target`, an item for each query.

    A score that is not a number beats the target and is beaten by every item, so a broken model
    never looks good. A target with a score of -inf, as if it is masked, is `UNRANKED`: `retrieve`
    lists it for no k, and its place among others of -inf would count as a hit where few are left.
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
        # What the first sweep counts is dropped: it does not know the score yet.
        target_score, wins = jax.lax.fori_loop(0, 2, sweep, zeros)
        return jnp.where(jnp.isneginf(target_score), UNRANKED, 1 + wins)

    return _map_shards(shard, mesh, catalog, query, seen, target)


class _Chunk(NamedTuple):
    """A scored part of a device's rows.

    Attributes:
      scores: float32[Q, C], -inf where an item is masked or `counts` is false.
      ids: int32[C], of items, ascending.
      counts: bool[C], false for rows past the catalogue and for those of another chunk.
    """

    scores: jax.Array
    ids: jax.Array
    counts: jax.Array


class _Chunks:
    """A device's rows in chunks of one size, scored when asked for; lives within `shard_map`.

    The last chunk begins early if the size does not divide the rows; what it shares with the one
    before it does not count.
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
        """Takes the rows of a device; the other arguments are those of `retrieve`."""
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
        """Returns where in a chunk ids count; C, past the end, for those that do not."""
        own, start = own_rows(ids, self.rows, CATALOG_SPEC), self._start(index)
        inside = (own >= index * self.size) & (own < start + self.size)
        return jnp.where(inside, own - start, self.size)

    def _start(self, index: Int[Array, ""]) -> Int[Array, ""]:
        return jnp.minimum(index * self.size, self.rows - self.size)


def _top(
    scores: Float[Array, "Q candidates"], ids: Int[Array, "Q candidates"], k: int
) -> tuple[Float[Array, "Q k"], Int[Array, "Q k"]]:
    best, place = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(ids, place, axis=1)


def _map_shards(
    shard: Callable, mesh: Mesh, catalog: Float[Array, "G R E"], *replicated: Shaped[Array, "Q ..."]
):
    """Calls a function with each device's rows; what it returns is the same on all of them."""
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(CATALOG_SPEC, *(REPLICATED for _ in replicated)),
        out_specs=REPLICATED,
        check_vma=False,
    )(catalog, *replicated)
