"""Training losses, in float32: functions of queries, item vectors and a batch."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict

from pixelrec_jax.data.types import PAD, Array, Batch, Score, gather_slots
from pixelrec_jax.system.options import Flag, Number, Option, keys_of_chosen


class Loss(Protocol):
    """What training minimises."""

    def __call__(
        self,
        score: Score,
        query: Float[Array, "G B T D"],
        item: Float[Array, "G U E"],
        batch: Batch,
    ) -> Float[jax.Array, ""]:
        """Returns the loss of a global batch, float32; of a microbatch, its share of that loss.

        Args:
          score: returns the scores of R items for each query.
          query: a query for every target, float32.
          item: the vectors of the batch's items, one for each slot, float32.
          batch: names positives and negatives by their slots.
        """


def bpr(
    score: Score,
    query: Float[Array, "G B T D"],
    item: Float[Array, "G U E"],
    batch: Batch,
    *,
    epsilon: Annotated[
        float,
        Option("in log(sigmoid(x) + epsilon); 0 is stable, the reference has 1e-8", Number(0)),
    ] = 0.0,
    single_row: Annotated[
        bool,
        Option("whether the loss reads only a batch's first row, as the reference's FM", Flag()),
    ] = False,
) -> Float[jax.Array, ""]:
    """Bayesian personalised ranking (Rendle et al. 2012), summed over targets, mean over rows.

    The losses of a target's K own negatives are averaged.

    Args:
      score, query, item, batch: see `Loss`.
      epsilon: 0 gives -log sigmoid(x), stable for every x. The reference's -log(sigmoid(x) + 1e-8)
        loses its gradient where a negative is far ahead (x below about -20).
      single_row: only the first row of the batch counts. The reference trains FM and DSSM this
        way, by an oversight.
    """
    batch = _only_first_row(batch) if single_row else batch
    positive, negative = gather_slots(item, batch.positive, batch.negative)
    difference = score(query, positive[..., None, :]) - score(query, negative)  # [G, B, T, K]
    difference = difference.astype(jnp.float32)
    if epsilon:
        loss = -jnp.log(jax.nn.sigmoid(difference) + epsilon)
    else:
        loss = -jax.nn.log_sigmoid(difference)
    return jnp.sum(jnp.mean(loss, axis=-1) * batch.weight) / batch.count_rows()


def _only_first_row(batch: Batch) -> Batch:
    """Returns the batch with its first row that is not padding; all others become padding."""
    real = batch.user != PAD
    is_first = (jnp.arange(real.size) == jnp.argmax(real.reshape(-1))).reshape(real.shape)
    return batch.replace(
        user=jnp.where(is_first, batch.user, PAD),
        weight=jnp.where(is_first[..., None], batch.weight, 0),
    )


# Each is a `Loss`; keyword arguments that are annotated with an `Option` are keys of `config.loss`.
LOSSES: dict[str, Callable[..., jax.Array]] = {"bpr": bpr}


def build_loss(loss: ConfigDict) -> Loss:
    """Returns the loss that `config.loss` names, with its options; it checks its arguments.

    Raises:
      UserError: no loss has this name.
    """
    options = {key: loss[key] for key in keys_of_chosen("loss", loss.name, LOSSES)}
    return partial(_checked, LOSSES[loss.name], **options)


def _checked(
    loss: Loss,
    score: Score,
    # Both of any shape: the message of `check` names the array and its axis.
    query: Float[Array, "..."],
    item: Float[Array, "..."],
    batch: Batch,
    **options: Any,
) -> Float[jax.Array, ""]:
    """Returns the loss of arrays that fit each other; raises ValueError if they do not."""
    batch.check(query=(query, "G B T D"), item=(item, "G U E"))
    return loss(score, query, item, batch, **options)
