"""Exact top k, and the rank of a target, over a row-sharded catalogue that is scored in chunks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from pixelrec_jax.data.types import PAD, Array, Score
from pixelrec_jax.evaluation.chunks import Chunks, best, best_of_chunk, map_shards
from pixelrec_jax.parallel.sharding import AXES

UNRANKED = np.iinfo(np.int32).max  # the rank of a target that is in no list, beyond every k


class Retrieved(NamedTuple):
    """What `retrieve` finds for Q queries; equal on all devices.

    Attributes:
      ids: int32[Q, k], the best items, best first; PAD where a query has fewer than k items left.
      scores: float32[Q, k], their scores; -inf for PAD, inf for a score that is NaN.
      rank: int32[Q], the place of the target among all items, 1 = best.
    """

    ids: jax.Array
    scores: jax.Array
    rank: jax.Array


def retrieve(
    score: Score,
    query: Float[Array, "Q D"],
    catalog: Float[Array, "G R E"],
    seen: Int[Array, "Q S"],
    target: Int[Array, " Q"],
    k: int,
    *,
    num_items: int,
    mesh: Mesh,
    chunk: int,
) -> Retrieved:
    """Returns the exact top k, seen items left out, and the place of a target in the same order.

    Of equal scores the lower id comes first. Each device scores its own rows, and no more than a
    chunk of them at once; devices exchange only k candidates and a count for each query.

    An item with a NaN score beats every target, and a target with a NaN score loses to every item:
    a broken model never looks good. A masked target, with a score of -inf, is `UNRANKED`: it is in
    no list, and a place among other masked items could count as a hit.

    The rank is one more than the number of items that beat the target; nothing is sorted for it. A
    first sweep over the chunks reads the targets' scores, and skips the chunks without a target; a
    second one counts. The same instruction of the compiled loop computes both, so that a target's
    score never differs from itself in the last bit. Queries in the order of their targets make the
    first sweep short.

    Args:
      score: returns the scores of C rows of the catalogue for Q queries.
      query: a query for each user, float32.
      catalog: item vectors, float32, row-sharded; row 0 and the rows from N on are padding.
      seen: the items to leave out for each query, padded with PAD.
      target: an item for each query, or PAD.
      k: length of the lists, at most N - 1.
      num_items: N, padding included.
      mesh: the device mesh.
      chunk: C, how many rows a device scores at once; it bounds the memory.
    """

    def shard(
        table: Float[Array, "1 R E"],
        query: Float[Array, "Q D"],
        seen: Int[Array, "Q S"],
        target: Int[Array, " Q"],
    ) -> Retrieved:
        chunks = Chunks(score, query, table[0], seen, num_items, chunk)
        kept = min(k, chunks.rows)
        user = jnp.arange(len(query))
        nothing = _Found(
            target_score=jnp.zeros(len(query)),
            wins=jnp.zeros(len(query), jnp.int32),
            scores=jnp.full((len(query), kept), -jnp.inf),
            ids=jnp.full((len(query), kept), PAD, jnp.int32),
        )

        def sweep(number: Int[Array, ""], before: _Found) -> _Found:
            goal = before.target_score[:, None]

            def fold(index: Int[Array, ""], found: _Found) -> _Found:
                here, place = chunks[index], chunks.place(target, index)
                own = here.scores.at[user, place].get(mode="fill", fill_value=0)
                tied = (here.scores == goal) & (here.ids[None] >= target[:, None])
                beats = here.counts[None] & ~((here.scores < goal) | tied)
                # Chunks and shards come in order of ids and top_k is stable: so do equal scores.
                lists = (found[-2:], best_of_chunk(here.scores, here.ids, min(k, chunks.size)))
                return _Found(
                    found.target_score + own,
                    found.wins + jnp.sum(beats, axis=1, dtype=jnp.int32),
                    *best(*(jnp.concatenate(x, axis=1) for x in zip(*lists, strict=True)), kept),
                )

            def visit(index: Int[Array, ""], found: _Found) -> _Found:
                needed = (number == 1) | jnp.any(chunks.place(target, index) < chunks.size)
                return jax.lax.cond(needed, fold, lambda _, found: found, index, found)

            found = jax.lax.fori_loop(0, len(chunks), visit, nothing)
            return found._replace(target_score=jax.lax.psum(found.target_score, AXES))

        found = jax.lax.fori_loop(0, 2, sweep, nothing)
        gathered = (jax.lax.all_gather(x, AXES, axis=1, tiled=True) for x in found[-2:])
        scores, ids = best(*gathered, k)
        rank = 1 + jax.lax.psum(found.wins, AXES)
        return Retrieved(
            ids=jnp.where(jnp.isneginf(scores), PAD, ids),
            scores=scores,
            rank=jnp.where(jnp.isneginf(found.target_score), UNRANKED, rank),
        )

    return map_shards(shard, mesh, catalog, query, seen, target)


class _Found(NamedTuple):
    """What a device has found in the chunks so far.

    Attributes:
      target_score: float32[Q], 0 until the target's chunk.
      wins: int32[Q], how many items beat the target, if its score was known before.
      scores, ids: [Q, kept], the best scores and their items.
    """

    target_score: jax.Array
    wins: jax.Array
    scores: jax.Array
    ids: jax.Array
