"""The post-norm transformer that sequential user encoders share (Kang and McAuley 2018)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixelrec_jax.errors import UserError

LAYER_NORM_EPSILON = 1e-12  # as in BERT and in the reference
_MASKED = -1e9  # finite, so that a row without any visible key becomes uniform and not NaN


def normal_init(std: float) -> nn.initializers.Initializer:
    """The initialiser N(0, std^2) that these models use for every matrix and table."""
    return nn.initializers.normal(std)


class TransformerLayer(nn.Module):
    """One layer: self-attention and feed-forward, each dropout -> residual -> layer norm.

    Attributes:
      heads: attention heads; divides D.
      inner: feed-forward width as a multiple of D.
      dropout: rate after each sub-layer and on attention probabilities.
      init_std: standard deviation of the initial weights.
    """

    heads: int
    inner: int
    dropout: float
    init_std: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, visible: jax.Array, *, train: bool) -> jax.Array:
        """Args: x [B, L, D]; visible bool[B, L, L], which keys (last axis) a query sees."""
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(f"width={width} is not divisible by user.heads={self.heads}")
        init = normal_init(self.init_std)

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

        def drop(y: jax.Array) -> jax.Array:
            return nn.Dropout(self.dropout, deterministic=not train)(y)

        def norm(y: jax.Array, name: str) -> jax.Array:
            return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=name)(y)

        def split(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:-1], self.heads, width // self.heads)  # [B, L, heads, D/h]

        query, key, value = (split(dense(width, n)(x)) for n in ("query", "key", "value"))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32)
        logits = logits / jnp.sqrt(width // self.heads) + jnp.where(visible, 0, _MASKED)[:, None]
        attention = drop(jax.nn.softmax(logits).astype(value.dtype))
        context = jnp.einsum("bhqk,bkhd->bqhd", attention, value).reshape(x.shape)
        x = norm(x + drop(dense(width, "out")(context)), "attention_norm")
        hidden = nn.gelu(dense(self.inner * width, "feed_in")(x), approximate=False)
        return norm(x + drop(dense(width, "feed_out")(hidden)), "feed_norm")
