"""VBPR: matrix factorisation with the items' looks and a bias (He and McAuley, AAAI 2016)."""

import jax.numpy as jnp
from jaxtyping import Float

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.users.mf import MF


class VBPR(MF):
    """Encodes a user as a row of a table, followed by ones that meet an item's bias.

    An item of `BiasedFeatures` has its bias past the D-th entry; the first half of a user's row
    meets its id and the second half its features. Items without a bias give plain MF.
    """

    feature_head = "biased"

    def __call__(
        self, history: History, *, train: bool
    ) -> Float[Array, "B 1 {history.item_embeddings.shape[-1]}"]:
        """Returns one query for each user, float32, as wide as an item's vector."""
        user = super().__call__(history, train=train)
        biases = history.item_embeddings.shape[-1] - self.width
        return jnp.concatenate([user, jnp.ones((*user.shape[:-1], biases))], axis=-1)
