"""SASRec: a causal transformer over the history (Kang and McAuley, ICDM 2018)."""

import jax.numpy as jnp
from jaxtyping import Bool

from pixelrec_jax.data.types import Array
from pixelrec_jax.users.transformer import Transformer


class SASRec(Transformer):
    """Encodes the user after each item: query t has seen the items up to and including slot t."""

    def visible(self, mask: Bool[Array, "B L"]) -> Bool[Array, "B L L"]:
        """Returns the slots up to the query's that hold an item."""
        causal = jnp.tril(jnp.ones((mask.shape[-1],) * 2, bool))
        return causal[None] & mask[:, None, :]
