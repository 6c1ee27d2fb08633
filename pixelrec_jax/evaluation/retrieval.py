"""Exact top k and target rank over a row-sharded catalogue."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from pixelrec_jax.data.types import PAD
from pixelrec_jax.parallel.sharding import AXES, CATALOG_SPEC
from pixelrec_jax.parallel.tables import own_rows


def retrieve(
    score: Callable[[jax.Array, jax.Array], jax.Array],
    query: jax.Array,
    catalog: jax.Array,
    seen: jax.Array,
    target: jax.Array,
    *,
    k: int,
    num_items: int,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Exact top k and target rank over the catalogue with seen items masked; ties: lower id first.

    Each device scores its own rows, so only k candidates and three numbers per user are exchanged.
    The rank comes from counting, without sorting.

    Args:
      score: gives float32[Q, R] for queries [Q, D] and the rows [R, E] of a device.
      query: float32[Q, D], of users.
      catalog: float32[G, R, E], row-sharded; row 0 and rows from `num_items` on are padding.
      seen: int32[Q, S], items to mask, padded with 0.
      target: int32[Q].
      k: length of the top list, at most N - 1.
      num_items: N.
      mesh: the device mesh.

    Returns:
      ids int32[Q, k], scores float32[Q, k] and rank int32[Q] (1 = best), replicated. A score that
      is not a number counts as a win over the target, so a broken model never looks good.
    """

    def shard(table: jax.Array, query: jax.Array, seen: jax.Array, target: jax.Array):
        rows = table.shape[1]
        ids = jax.lax.axis_index(AXES) * rows + jnp.arange(rows)
        scores = jnp.where((ids != PAD) & (ids < num_items), score(query, table[0]), -jnp.inf)
        user = jnp.arange(len(query))

        scores = scores.at[user[:, None], own_rows(seen, rows, CATALOG_SPEC)].set(
            -jnp.inf, mode="drop"
        )
        # The target's score is read from the same product, so it never differs in the last bit.
        own = scores.at[user, own_rows(target, rows, CATALOG_SPEC)].get(mode="fill", fill_value=0)
        target_score = jax.lax.psum(own, AXES)[:, None]
        loses = (scores < target_score) | ((scores == target_score) & (ids >= target[:, None]))
        rank = 1 + jax.lax.psum(jnp.sum(~loses, axis=1, dtype=jnp.int32), AXES)

        best, place = jax.lax.top_k(scores, min(k, rows))
        # Shards hold ascending ids and top_k is stable, so ties stay in order of id.
        best = jax.lax.all_gather(best, AXES, axis=1, tiled=True)
        candidate_ids = jax.lax.all_gather(ids[place], AXES, axis=1, tiled=True)
        best, place = jax.lax.top_k(best, k)
        return jnp.take_along_axis(candidate_ids, place, axis=1), best, rank

    replicated = PartitionSpec()
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(CATALOG_SPEC, replicated, replicated, replicated),
        out_specs=replicated,
        check_vma=False,
    )(catalog, query, seen, target)
