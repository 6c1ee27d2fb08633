"""Training losses, in float32."""

import jax
import jax.numpy as jnp

from pixelrec_jax.data.types import PAD, Batch


def bpr(
    positive: jax.Array, negative: jax.Array, weight: jax.Array, rows: jax.Array, *, epsilon: float
) -> jax.Array:
    """Bayesian personalised ranking (Rendle et al. 2012), summed over targets, mean over rows.

    Args:
      positive: float[..., T], scores of the targets.
      negative: float[..., T, K], scores of the sampled negatives; their K losses are averaged.
      weight: float[..., T], 1 for a target and 0 for padding.
      rows: float[], the number of rows that are not padding.
      epsilon: 0 gives -log sigmoid(x), stable for every x. The reference's -log(sigmoid(x) + 1e-8)
        has no gradient left where a negative is far ahead (x below about -20).

    Returns:
      float32[].
    """
    difference = (positive[..., None] - negative).astype(jnp.float32)
    if epsilon:
        loss = -jnp.log(jax.nn.sigmoid(difference) + epsilon)
    else:
        loss = -jax.nn.log_sigmoid(difference)
    return jnp.sum(jnp.mean(loss, axis=-1) * weight) / rows


def only_first_row(batch: Batch) -> Batch:
    """Returns the batch with all rows but the first turned to padding.

    So the reference's FM and DSSM train, by an oversight: on one row of every batch.
    """
    shards, rows = batch.user.shape
    first = jnp.zeros((shards, rows), bool).at[0, 0].set(True)
    return batch.replace(
        user=jnp.where(first, batch.user, PAD),
        weight=jnp.where(first[..., None], batch.weight, 0),
    )
