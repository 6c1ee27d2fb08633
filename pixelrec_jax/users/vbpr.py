"""VBPR: matrix factorisation with the items' looks and a bias (He and McAuley, AAAI 2016)."""

import jax.numpy as jnp
from jaxtyping import Float

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.users.mf import MF


class VBPR(MF):
    """A row of a table of users, followed by 1 for each entry of an item past the D-th, its bias.

    Of items as biased features the first half of a user's row meets the id, the second half the
    features (`BiasedFeatures`). Items of other kinds have no bias: then it is plain MF.
    """

    feature_head = "biased"

    def __call__(self, history: History, *, train: bool) -> Float[Array, "B 1 E"]:
        """Returns one query for each user, float32, as wide as an item's vector."""
        user = super().__call__(history, train=train)
        biases = history.item_embeddings.shape[-1] - self.width
        return jnp.concatenate([user, jnp.ones((*user.shape[:-1], biases))], axis=-1)
