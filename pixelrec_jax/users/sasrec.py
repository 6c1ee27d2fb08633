"""SASRec: a causal transformer over the history (Kang and McAuley, ICDM 2018)."""

import jax
import jax.numpy as jnp

from pixelrec_jax.users.transformer import Transformer


class SASRec(Transformer):
    """Encodes the user after each item: query t has seen the items up to and including slot t."""

    def visible(self, mask: jax.Array) -> jax.Array:
        """Returns bool[B, L, L]: slots up to the query's that hold an item."""
        causal = jnp.tril(jnp.ones((mask.shape[-1],) * 2, bool))
        return causal & mask[:, None, :]
