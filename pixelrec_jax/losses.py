"""Training losses, in float32: functions of queries, item vectors and a batch."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from pixelrec_jax.data.types import PAD, Batch, gather_slots
from pixelrec_jax.system.errors import UserError, nearest

Score = Callable[[jax.Array, jax.Array], jax.Array]


class Loss(Protocol):
    """What training minimises."""

    def __call__(self, score: Score, query: jax.Array, item: jax.Array, batch: Batch) -> jax.Array:
        """Returns the loss float32[] of a global batch.

        Args:
          score: gives float32[..., R] for queries [..., D] and items [..., R, E].
          query: float32[G, B, T, D], one for every target.
          item: float32[G, U, E], the vectors of the batch's distinct items.
          batch: says by slots which items are positives and negatives.
        """


def bpr(
    score: Score,
    query: jax.Array,
    item: jax.Array,
    batch: Batch,
    *,
    epsilon: float,
    single_row: bool,
) -> jax.Array:
    """Bayesian personalised ranking (Rendle et al. 2012), summed over targets, mean over rows.

    The losses of a target's K own negatives are averaged.

    Args:
      score, query, item, batch: see `Loss`.
      epsilon: 0 gives -log sigmoid(x), stable for every x. The reference's -log(sigmoid(x) + 1e-8)
        has no gradient left where a negative is far ahead (x below about -20).
      single_row: only the first row of the batch counts. So the reference's FM and DSSM train, by
        an oversight.
    """
    batch = _only_first_row(batch) if single_row else batch
    positive, negative = gather_slots(item, batch.positive, batch.negative)
    difference = score(query, positive[..., None, :]) - score(query, negative)  # [G, B, T, K]
    difference = difference.astype(jnp.float32)
    if epsilon:
        loss = -jnp.log(jax.nn.sigmoid(difference) + epsilon)
    else:
        loss = -jax.nn.log_sigmoid(difference)
    rows = jnp.count_nonzero(batch.user != PAD)
    return jnp.sum(jnp.mean(loss, axis=-1) * batch.weight) / rows


def _only_first_row(batch: Batch) -> Batch:
    """Returns the batch with all rows but the first turned to padding."""
    shards, rows = batch.user.shape
    first = jnp.zeros((shards, rows), bool).at[0, 0].set(True)
    return batch.replace(
        user=jnp.where(first, batch.user, PAD),
        weight=jnp.where(first[..., None], batch.weight, 0),
    )


# A `Loss` each, with options by name beside its arguments.
LOSSES: dict[str, Callable[..., jax.Array]] = {"bpr": bpr}


def loss_options(name: str) -> tuple[str, ...]:
    """Returns the keys of `config.loss` that a registered loss takes, its keyword arguments.

    Raises:
      UserError: no loss has this name.
    """
    if name not in LOSSES:
        raise UserError(f"unknown loss.name={name!r}{nearest(name, LOSSES)}")
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return tuple(x.name for x in parameters if x.kind is inspect.Parameter.KEYWORD_ONLY)


def build_loss(loss: ConfigDict) -> Loss:
    """Returns the loss that `config.loss` names, with its options.

    Raises:
      UserError: no loss has this name.
    """
    return partial(LOSSES[loss.name], **{key: loss[key] for key in loss_options(loss.name)})
