"""Exact top k, and the rank of a target, over a row-sharded catalogue that is scored in chunks."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from pixelrec_jax.data.types import PAD, Array, Score
from pixelrec_jax.evaluation.chunks import Chunks
from pixelrec_jax.evaluation.lists import Retrieved, add_chunk, beats, collect
from pixelrec_jax.evaluation.screening import rounded_product, screen
from pixelrec_jax.parallel.sharding import AXES, CATALOG_SPEC, REPLICATED

_AGAIN = 128  # queries that are scored again at once


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
    rescored: int = 0,
) -> Retrieved:
    """Returns the exact top k, seen items left out, and the place of a target in the same order.

    Of equal scores the lower id comes first. NaN counts as inf, except for a target: it then loses
    to every item. Each device scores its own rows, and no more than a chunk of them at once;
    devices exchange only k candidates and a count for each query.

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
      rescored: 0, or for a dot product, how many rows a device scores in float32 for each query
        after it has scored all in bfloat16. Queries that need more are scored again in float32.
    """

    def shard(
        table: Float[Array, "1 R E"],
        query: Float[Array, "Q D"],
        seen: Int[Array, "Q S"],
        target: Int[Array, " Q"],
    ) -> Retrieved:
        def search(
            query: Float[Array, "P D"], seen: Int[Array, "P S"], target: Int[Array, " P"]
        ) -> Retrieved:
            return _search(Chunks(score, query, table[0], seen, num_items, chunk), target, k)

        if not rescored:
            return search(query, seen, target)
        chunks = Chunks(rounded_product, query, table[0], seen, num_items, chunk)
        found, exact = screen(
            score, chunks, target, k, num_items=num_items, rescored=max(rescored, k)
        )
        order = jnp.argsort(exact)  # those that are not exact first
        size = min(_AGAIN, len(query))

        def again(number: Int[Array, ""], found: Retrieved) -> Retrieved:
            rows = jax.lax.dynamic_slice_in_dim(order, number * size, size)
            new = search(query[rows], seen[rows], target[rows])
            return jax.tree.map(lambda old, new: old.at[rows].set(new), found, new)

        return jax.lax.fori_loop(0, -(-jnp.sum(~exact) // size), again, found)

    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(CATALOG_SPEC, REPLICATED, REPLICATED, REPLICATED),
        out_specs=REPLICATED,
        check_vma=False,
    )(catalog, query, seen, target)


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


def _search(chunks: Chunks, target: Int[Array, " Q"], k: int) -> Retrieved:
    """Returns the result for the chunks of all devices, in `shard_map`.

    The rank is one more than the number of items that beat the target; nothing is sorted for it. A
    first sweep over the chunks reads the targets' scores, and skips the chunks without a target; a
    second one counts. The same instruction of the compiled loop computes both, so that a target's
    score never differs from itself in the last bit. Queries in the order of their targets make the
    first sweep short.
    """
    queries, kept = len(target), min(k, chunks.rows)
    nothing = _Found(
        target_score=jnp.zeros(queries),
        wins=jnp.zeros(queries, jnp.int32),
        scores=jnp.full((queries, kept), -jnp.inf),
        ids=jnp.full((queries, kept), PAD, jnp.int32),
    )

    def fold(index: Int[Array, ""], found: _Found, goal: Float[Array, " Q"]) -> _Found:
        here = chunks[index]
        own = here.scores.at[jnp.arange(queries), chunks.place(target, index)]
        won = here.counts[None] & beats(here.scores, here.ids[None], goal, target)
        return _Found(
            found.target_score + own.get(mode="fill", fill_value=0),
            found.wins + jnp.sum(won, axis=1, dtype=jnp.int32),
            *add_chunk(found.scores, found.ids, here.scores, here.ids),
        )

    def sweep(number: Int[Array, ""], before: _Found) -> _Found:
        def visit(index: Int[Array, ""], found: _Found) -> _Found:
            needed = (number == 1) | jnp.any(chunks.place(target, index) < chunks.size)
            change = partial(fold, goal=before.target_score)
            return jax.lax.cond(needed, change, lambda _, found: found, index, found)

        found = jax.lax.fori_loop(0, len(chunks), visit, nothing)
        return found._replace(target_score=jax.lax.psum(found.target_score, AXES))

    found = jax.lax.fori_loop(0, 2, sweep, nothing)
    return collect(found.scores, found.ids, found.target_score, found.wins, k)
