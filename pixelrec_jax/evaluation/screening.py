"""Dot products in bfloat16 choose the few items that are scored in float32: lists stay exact."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from pixelrec_jax.data.types import Array, Score
from pixelrec_jax.evaluation.chunks import Chunk, Chunks
from pixelrec_jax.evaluation.lists import Retrieved, add_chunk, beats, best, collect
from pixelrec_jax.parallel.sharding import AXES
from pixelrec_jax.users.encoder import UserEncoder

_RESCORED, _LEAST_ROWS = 128, 32_768
_UNIT = 2.0**-24  # the largest relative error of rounding to float32
_SMALL = 2.0**-62  # numbers below it may be lost in a norm, since their squares underflow


def num_rescored(encoder: UserEncoder, platform: str, rows: int) -> int:
    """Returns how many items a device with `rows` items scores again for each query, 0 for none.

    It is for dot products on devices that are faster with bfloat16, and for so many rows that it
    is less work than to score all of them in float32: by arithmetic, it is not measured.
    """
    is_product = type(encoder).score is UserEncoder.score
    return _RESCORED if is_product and platform != "cpu" and rows >= _LEAST_ROWS else 0


def rounded_product(query: Float[Array, "Q D"], item: Float[Array, "R E"]) -> Float[Array, "Q R"]:
    """Returns the dot products of R items with each query, rounded to bfloat16, summed in float32.

    Entries of items past the D-th are not scored.
    """
    rounded = (_rounded(x).astype(jnp.bfloat16) for x in (query, item[:, : query.shape[1]]))
    return jnp.einsum("qd,rd->qr", *rounded, preferred_element_type=jnp.float32)


class Norms(NamedTuple):
    """Bounds of vectors [M, D].

    Attributes:
      whole: float32[M], the norm of a vector.
      lost: float32[M], the norm of what rounding to bfloat16 takes from it.
    """

    whole: jax.Array
    lost: jax.Array


def norms(vectors: Float[Array, "M D"]) -> Norms:
    """Returns the norms of vectors, with what underflows in them added."""

    def norm(x: Float[Array, "M D"]) -> Float[jax.Array, " M"]:
        return jnp.sqrt(jnp.sum(x * x, axis=1)) + _SMALL * vectors.shape[1] ** 0.5

    return Norms(norm(vectors), norm(vectors - _rounded(vectors)))


def error_of_float32(width: int) -> float:
    """Returns a bound of the error of a dot product in float32, as a share of |q||x|.

    A sum of D products errs by at most D u |q||x| with u = 2^-24, in any order, and by twice that
    on chips that cut sums and do not round them; a product that a chip makes of bfloat16 parts errs
    by a few u more. The factor 8 is for the float32 and the bfloat16 product together, and for the
    rounding of norms and of the bound itself.
    """
    return 8 * (width + 8) * _UNIT


def error_bound(query: Norms, item: Norms, width: int) -> Float[Array, "Q R"]:
    """Returns how far `rounded_product` and the float32 score of an item can be apart.

    Proof. Let h(q) be q rounded to bfloat16, and l(q) = q - h(q), which float32 holds exactly:
    |l(q)| <= 2^-8 |q|, as bfloat16 has 8 significant bits. The same goes for x. Then
      q.x - h(q).h(x) = q.l(x) + l(q).h(x),
    which by Cauchy and Schwarz is at most |q||l(x)| + |l(q)||h(x)|, and |h(x)| <= (1 + 2^-8) |x|.
    Products of bfloat16 numbers are exact in float32, so that only the sum errs; its error and that
    of the float32 score are in `error_of_float32`. Products that underflow are covered by what
    `norms` adds. Numbers that overflow give a bound of inf or NaN, which decides nothing.

    In the worst case this is little more than 2^-7 |q||x|; the computed norms mostly give less.
    """
    of_norm = (1 + 2.0**-8) * query.lost + error_of_float32(width) * query.whole
    return query.whole[:, None] * item.lost[None] + of_norm[:, None] * item.whole[None]


def screen(
    score: Score,
    chunks: Chunks,
    target: Int[Array, " Q"],
    k: int,
    *,
    num_items: int,
    rescored: int,
) -> tuple[Retrieved, Bool[jax.Array, " Q"]]:
    """Returns the result of `retrieve`, and whether it is exact; in `shard_map`.

    For each query a device keeps the rows whose place relative to the target the bfloat16 scores
    cannot tell, and then those that could have the largest scores. These are scored in float32. The
    result is exact if all of the former were kept, and if no row that was not kept could be in the
    list. A target with a NaN score is left to float32.

    Args:
      score: the score in float32, a dot product.
      chunks: the rows of this device, with scores of `rounded_product`.
      target, k, num_items: see `retrieve`.
      rescored: how many rows are kept, at least k.
    """
    query, width = chunks.query, chunks.query.shape[1]
    kept = min(rescored, chunks.rows)
    of_target = jax.lax.psum(chunks.get(target), AXES)[:, :width]
    size = norms(query)
    goal = jnp.sum(query * of_target, axis=1)
    error = error_of_float32(width) * size.whole * norms(of_target).whole

    def judge(here: Chunk) -> tuple[Bool[jax.Array, "Q C"], Float[jax.Array, "Q C"]]:
        """Returns sure wins, and keys by which rows are kept."""
        bound = error_bound(size, norms(here.items[:, :width]), width)
        masked = jnp.isneginf(here.scores)
        most = jnp.where(masked, -jnp.inf, here.scores + bound)
        wins = (here.scores - bound > (goal + error)[:, None]) & (most < jnp.inf) & ~masked
        loses = most < (goal - error)[:, None]
        return wins, jnp.where(wins | loses | masked, most, jnp.inf)

    def fold(
        index: Int[Array, ""],
        found: tuple[Int[Array, " Q"], Float[Array, "Q kept"], Int[Array, "Q kept"]],
    ) -> tuple[Int[Array, " Q"], Float[jax.Array, "Q kept"], Int[jax.Array, "Q kept"]]:
        wins, keys, ids = found
        here = chunks[index]
        sure, key = judge(here)
        return wins + jnp.sum(sure, axis=1, dtype=jnp.int32), *add_chunk(keys, ids, key, here.ids)

    nothing = (
        jnp.zeros(len(query), jnp.int32),
        jnp.full((len(query), kept), -jnp.inf),
        jnp.full((len(query), kept), num_items, jnp.int32),
    )
    wins, keys, ids = jax.lax.fori_loop(0, len(chunks), fold, nothing)
    left_out = keys[:, -1] if kept < chunks.rows else jnp.full(len(query), -jnp.inf)
    # By id, so that equal scores keep this order; places without a row come last.
    ids, undecided = jax.lax.sort(
        (jnp.where(jnp.isneginf(keys), num_items, ids), jnp.isposinf(keys).astype(jnp.int32)),
        num_keys=1,
    )
    scores = jnp.where(ids < num_items, score(query, chunks.get(ids)), -jnp.inf)
    is_target = ids == target[:, None]
    found = jax.lax.psum(jnp.any(is_target, axis=1).astype(jnp.int32), AXES)
    target_score = jax.lax.psum(jnp.sum(jnp.where(is_target, scores, 0), axis=1), AXES)
    target_score = jnp.where(found > 0, target_score, -jnp.inf)
    wins += jnp.sum(beats(scores, ids, target_score, target) & (undecided == 1), axis=1)
    lists = best(jnp.where(jnp.isnan(scores), jnp.inf, scores), ids, min(k, kept))
    result = collect(*lists, target_score, wins, k)
    left_out = jax.lax.pmax(left_out, AXES)
    complete = (result.scores[:, -1] > left_out) | jnp.isneginf(left_out)
    return result, complete & ~jnp.isnan(target_score)


def _rounded(x: Float[Array, "M D"]) -> Float[jax.Array, "M D"]:
    # Not astype twice: the compiler may leave out both.
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
