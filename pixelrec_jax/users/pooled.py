"""Users as a pool of their items: factorisation machine and two-tower model without layers."""

import jax.numpy as jnp
from jaxtyping import Float

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.users.encoder import UserEncoder, visible_embeddings


class FM(UserEncoder):
    """Factorisation machine (Rendle 2010) over the items of a history and a candidate.

    Pairs within the history give every candidate the same term, which changes neither the ranking
    nor BPR, so it is left out. Pairs with the candidate give its dot product with the history's
    sum. As in the reference, there are no linear terms.
    """

    def __call__(self, history: History, *, train: bool) -> Float[Array, "B 1 {self.width}"]:
        """Returns one query for each user, float32."""
        return visible_embeddings(history, show_padding=False).sum(axis=1, keepdims=True)


class DSSM(UserEncoder):
    """Two-tower model (Huang et al. 2013) without layers, as in the reference: a history's mean."""

    def __call__(self, history: History, *, train: bool) -> Float[Array, "B 1 {self.width}"]:
        """Returns one query for each user, float32."""
        total = visible_embeddings(history, show_padding=False).sum(axis=1, keepdims=True)
        count = history.mask.sum(axis=1)[:, None, None]
        return total / (count.astype(jnp.float32) + 1e-8)
