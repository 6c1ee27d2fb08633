"""The best items of queries: exact lists, and the ranks of targets, from the parts of devices."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from pixelrec_jax.data.types import PAD, Array
from pixelrec_jax.parallel.sharding import AXES

UNRANKED = np.iinfo(np.int32).max  # the rank of a target that is in no list, beyond every k

_GROUP = 32  # columns of which only the largest is sorted at first


class Retrieved(NamedTuple):
    """What is found for Q queries, equal on all devices.

    Attributes:
      ids: int32[Q, k], the best items, best first; PAD where a query has fewer than k items left.
      scores: float32[Q, k], their scores; -inf for PAD, inf for a score that is NaN.
      rank: int32[Q], the place of the target among all items, 1 = best.
    """

    ids: jax.Array
    scores: jax.Array
    rank: jax.Array


def best(
    scores: Float[Array, "Q candidates"], ids: Int[Array, "Q candidates"], k: int
) -> tuple[Float[jax.Array, "Q k"], Int[jax.Array, "Q k"]]:
    """Returns the k largest scores, largest first, and their items; of equal ones the first."""
    largest, place = jax.lax.top_k(scores, k)
    return largest, jnp.take_along_axis(ids, place, axis=1)


def add_chunk(
    scores: Float[Array, "Q kept"],
    ids: Int[Array, "Q kept"],
    of_chunk: Float[Array, "Q C"],
    items: Int[Array, " C"],
) -> tuple[Float[jax.Array, "Q kept"], Int[jax.Array, "Q kept"]]:
    """Returns the best scores of a list and of a chunk, largest first, and their items.

    NaN counts as inf. Of equal scores those of the list come first, then those of the lower column:
    ids stay in order, since chunks come in this order.
    """
    found = _best_of_chunk(of_chunk, items, min(scores.shape[1], of_chunk.shape[1]))
    both = (jnp.concatenate(pair, axis=1) for pair in zip((scores, ids), found, strict=True))
    return best(*both, scores.shape[1])


def _best_of_chunk(
    scores: Float[Array, "Q C"], items: Int[Array, " C"], k: int
) -> tuple[Float[jax.Array, "Q k"], Int[jax.Array, "Q k"]]:
    """Returns the k largest scores, largest first, and their items, without sorting most scores.

    Each of the k best is in one of the k groups of columns with the largest maxima: if its group
    were not among them, each of these would hold an item that beats it.
    """
    # NaN has no place in an order: with it, neither top_k nor a maximum is defined.
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    if scores.shape[1] <= 2 * k * _GROUP:
        largest, column = jax.lax.top_k(scores, k)
        return largest, items[column]
    scores = jnp.pad(scores, ((0, 0), (0, -scores.shape[1] % _GROUP)), constant_values=-jnp.inf)
    maxima = scores.reshape(len(scores), -1, _GROUP).max(axis=2)
    _, chosen = jax.lax.top_k(maxima, k)
    chosen = jnp.sort(chosen, axis=1)  # top_k is stable: of equal scores the lower column is first
    column = chosen[..., None] * _GROUP + jnp.arange(_GROUP)[None, None]
    column = column.reshape(len(scores), -1)
    largest, column = best(jnp.take_along_axis(scores, column, axis=1), column, k)
    return largest, items[column]


def beats(
    scores: Float[Array, "Q C"],
    ids: Int[Array, "#Q C"],
    goal: Float[Array, " Q"],
    target: Int[Array, " Q"],
) -> Bool[jax.Array, "Q C"]:
    """Returns which items come before the target with the score `goal`.

    A NaN score beats every target, and a target with a NaN score loses to every item: a broken
    model never looks good.
    """
    tied = (scores == goal[:, None]) & (ids >= target[:, None])
    return jnp.logical_not((scores < goal[:, None]) | tied)


def collect(
    scores: Float[Array, "Q kept"],
    ids: Int[Array, "Q kept"],
    target_score: Float[Array, " Q"],
    wins: Int[Array, " Q"],
    k: int,
) -> Retrieved:
    """Returns the result of all devices, in `shard_map`.

    Args:
      scores, ids: the best of this device, best first.
      target_score: the score of the target, equal on all devices; -inf for a masked one, which is
        `UNRANKED`: it is in no list, and a place among other masked items could count as a hit.
      wins: how many items of this device beat the target.
      k: length of the lists.
    """
    # Devices come in the order of ids as well.
    scores, ids = best(*(jax.lax.all_gather(x, AXES, axis=1, tiled=True) for x in (scores, ids)), k)
    rank = 1 + jax.lax.psum(wins, AXES)
    return Retrieved(
        ids=jnp.where(jnp.isneginf(scores), PAD, ids),
        scores=scores,
        rank=jnp.where(jnp.isneginf(target_score), UNRANKED, rank),
    )
