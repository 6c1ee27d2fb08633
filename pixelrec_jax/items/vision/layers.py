"""Layers that vision encoders share: batch norm, stochastic depth, pooling; and their context."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jax.typing import DTypeLike
from jaxtyping import Float

from pixelrec_jax.data.types import Array
from pixelrec_jax.dropout import draw_kept
from pixelrec_jax.system.options import Number, Option


class Context(struct.PyTreeNode):
    """How a backbone runs on M images; the default is evaluation.

    Attributes:
      train: whether batch norm uses and updates batch statistics and stochastic depth drops paths.
      item: int32[M], the item of each image. Random decisions are made per item, so they do not
        depend on an item's place in the batch or on its device.
      weight: float32[M], how much each image counts in batch statistics, 0 for padding.
    """

    train: bool = struct.field(pytree_node=False, default=False)
    item: Array | None = None
    weight: Array | None = None

    def only(self, condition: bool) -> "Context":
        """Returns this context, in train mode only if it already is and the condition holds."""
        return self.replace(train=self.train and condition)


class BatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) over all but the last axis, with weighted images.

    Mean and variance are computed in float32 over the images of all devices. As in PyTorch, the
    running variance is the unbiased one and `momentum` is the share of the new batch.

    Attributes:
      epsilon: added to the variance.
      momentum: share of a batch in the running statistics.
      dtype: of the result.
    """

    epsilon: float = 1e-5
    momentum: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "M *map C"], context: Context) -> Float[Array, "M *map C"]:
        """Returns x normalised, of `dtype`."""
        width = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, width, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, width, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, width, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, width, jnp.float32)
        mean, var = running_mean.value, running_var.value
        if context.train:
            mean, var, count = _statistics(x, context.weight)
            share = self.momentum
            if not self.is_initializing():
                unbiased = var * count / jnp.maximum(count - 1, 1)
                running_mean.value = (1 - share) * running_mean.value + share * mean
                running_var.value = (1 - share) * running_var.value + share * unbiased
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        mean, factor, bias = (_along(x, channel) for channel in (mean, factor, bias))
        return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.dtype)


def _along(x: Float[Array, "M *map C"], channel: Float[Array, " C"]) -> Float[Array, "... C"]:
    """Returns a value per channel, with as many axes as x."""
    return jnp.expand_dims(channel, range(x.ndim - 1))


def _statistics(
    x: Float[Array, "M *map C"], weight: Float[Array, " M"] | None
) -> tuple[Float[Array, " C"], Float[Array, " C"], Float[Array, ""]]:
    """Returns mean and biased variance of each channel, and the number of its values, float32."""
    x = x.astype(jnp.float32)
    weight = jnp.ones(len(x)) if weight is None else weight
    pixels = tuple(range(1, x.ndim - 1))
    count = jnp.sum(weight) * x[0, ..., 0].size

    def total(values: Float[Array, "M *map C"]) -> Float[Array, " C"]:
        # Each image is summed first: on CPU that is twice as fast as one sum over all.
        return jnp.sum(weight[:, None] * values.sum(pixels), axis=0)

    mean = total(x) / count
    return mean, total(jnp.square(x - _along(x, mean))) / count, count


DROP_PATH = Option("rate of stochastic depth in training", Number(least=0, below=1))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch of an item, in train mode.

    Attributes:
      rate: probability of dropping; kept branches are scaled by 1 / (1 - rate).
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "M ..."], context: Context) -> Float[Array, "M ..."]:
        """Returns x, scaled and with zeros for dropped items in train mode."""
        if not context.train or self.rate == 0:
            return x
        key = self.make_rng("dropout")
        item = jnp.arange(len(x)) if context.item is None else context.item
        kept = draw_kept(key, item, self.rate).reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(kept, x / (1 - self.rate), 0)


def split_heads(
    x: Float[Array, "*batch C"], heads: int
) -> Float[Array, "*batch {heads} C//{heads}"]:
    """Returns x with the last axis split into heads."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def prepend_token(token: Float[Array, " C"], x: Float[Array, "M S C"]) -> Float[Array, "M S+1 C"]:
    """Returns the class token ahead of the tokens of each image."""
    token = jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, x.shape[-1]))
    return jnp.concatenate([token, x], axis=1)


class MapPool(nn.Module):
    """Flattens a map to tokens or takes their mean.

    Attributes:
      pool: "tokens" or "mean".
    """

    pool: str

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"]) -> Float[Array, "M *tokens C"]:
        """Returns the tokens or their mean."""
        tokens = x.reshape(len(x), -1, x.shape[-1])
        return tokens if self.pool == "tokens" else tokens.mean(axis=1)


class TokenPool(nn.Module):
    """Keeps all tokens or the class token, or takes the mean of the others.

    Attributes:
      pool: "tokens", "cls" or "mean".
    """

    pool: str

    @nn.compact
    def __call__(self, x: Float[Array, "M S C"]) -> Float[Array, "M *tokens C"]:
        """Returns the tokens or one vector; in x the class token comes first."""
        match self.pool:
            case "tokens":
                return x
            case "cls":
                return x[:, 0]
            case _:
                return x[:, 1:].mean(axis=1)
