"""VisRank: recommends what looks like the history (Kang et al. 2017), without training."""

import jax
import jax.numpy as jnp
from jaxtyping import Float

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.system.options import Option, Whole
from pixelrec_jax.users.encoder import UserEncoder, visible_embeddings


class VisRank(UserEncoder):
    """Scores an item by the mean of its largest cosines with the items of the history."""

    average_top_k: int = Option(
        "how many of the largest cosines are averaged; fewer if the history is shorter", Whole()
    ).field(1)

    item_encoders = ("features",)
    why_not_others = (
        "it compares frozen features and trains nothing, but other items have to be trained; "
        "use item=features"
    )
    feature_head = "raw"

    def __call__(
        self, history: History, *, train: bool
    ) -> Float[Array, "B 1 {history.item_embeddings[0].size}"]:
        """Returns the history's vectors side by side, D = L * E; zeros at padding."""
        vector = visible_embeddings(history, show_padding=False)
        return vector.reshape(len(vector), 1, -1)

    def score(
        self, query: Float[Array, "*#batch D"], item: Float[Array, "*#batch R E"]
    ) -> Float[Array, "*#batch R"]:
        """Returns the scores of R items, unit vectors, for each query, D = L * E.

        It needs memory for twice [..., R, L] numbers.
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
