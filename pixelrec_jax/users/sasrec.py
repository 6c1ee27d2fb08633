"""SASRec: a causal transformer over the history (Kang and McAuley, ICDM 2018)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixelrec_jax.data.types import History
from pixelrec_jax.users.transformer import LAYER_NORM_EPSILON, TransformerLayer, normal_init


class SASRec(nn.Module):
    """Encodes the user after each item of the history.

    Attributes:
      history_length: L.
      layers: number of transformer layers.
      heads, inner, dropout, init_std: see `TransformerLayer`.
    """

    history_length: int
    layers: int = 2
    heads: int = 4
    inner: int = 2
    dropout: float = 0.1
    init_std: float = 0.02
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, history: History, *, train: bool) -> jax.Array:
        """Returns float32[B, L, D]; state t has seen the items up to and including slot t."""
        length, width = history.vector.shape[-2:]
        position = self.param(
            "position", normal_init(self.init_std), (self.history_length, width), jnp.float32
        )
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")(
            history.vector + position
        )
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        causal = jnp.tril(jnp.ones((length, length), bool))
        visible = causal & history.mask[:, None, :]  # [B, L, L]
        for n in range(self.layers):
            x = TransformerLayer(
                heads=self.heads,
                inner=self.inner,
                dropout=self.dropout,
                init_std=self.init_std,
                dtype=self.dtype,
                name=f"layer_{n}",
            )(x, visible, train=train)
        return x.astype(jnp.float32)
