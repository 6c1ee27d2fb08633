"""VisRank: what looks like the history (Kang et al. 2017), without training."""

import jax
import jax.numpy as jnp

from pixelrec_jax.data.types import History
from pixelrec_jax.system.options import Option, Whole
from pixelrec_jax.users.encoder import UserEncoder, visible_embeddings


class VisRank(UserEncoder):
    """Scores an item by the mean of its largest cosines with the items of the history."""

    average_top_k: int = Option(
        "how many of the largest cosines are averaged; fewer if the history is shorter", Whole()
    ).field(1)

    item_encoders = ("features",)
    why_not_others = (
        "it compares frozen features and trains nothing, and other items have to be trained; "
        "use item=features"
    )
    feature_head = "raw"

    def __call__(self, history: History, *, train: bool) -> jax.Array:
        """Returns float32[B, 1, L * E], the history's vectors, zeros at padding."""
        vector = visible_embeddings(history, show_padding=False)
        return vector.reshape(len(vector), 1, -1)

    def score(self, query: jax.Array, item: jax.Array) -> jax.Array:
        """Returns float32[..., R] for queries [..., L * E] and unit vectors of items [..., R, E].

        Takes the memory of twice [..., R, L] numbers.
        """
        history = query.reshape(*query.shape[:-1], -1, item.shape[-1])
        cosine = jnp.einsum(
            "...rd,...ld->...rl", item, history, precision=jax.lax.Precision.HIGHEST
        )
        real = jnp.any(history != 0, axis=-1)[..., None, :]
        k = min(self.average_top_k, history.shape[-2])
        best, _ = jax.lax.top_k(jnp.where(real, cosine, -jnp.inf), k)
        found = best != -jnp.inf
        return jnp.sum(jnp.where(found, best, 0), axis=-1) / jnp.maximum(found.sum(axis=-1), 1)
