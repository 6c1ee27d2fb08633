"""ACF: attention to locations of images and to items of a history (Chen et al., SIGIR 2017)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.parallel.tables import embedding_lookup
from pixelrec_jax.users.encoder import UserEncoder, visible_embeddings


class ACF(UserEncoder):
    """Encodes a user as a row of a table plus a mean of the history's items.

    Attention weights the items in that mean. A second attention weights the locations of each
    item's image; their mean says how the item looks. As in the reference, items of the history and
    targets share one table.
    """

    has_table = True
    item_encoders = ("id+features",)
    why_not_others = "it reads both ids and features of locations; use item=id+features"
    feature_head = "components"

    @nn.compact
    def __call__(self, history: History, *, train: bool) -> Float[Array, "B 1 {self.width}"]:
        """Returns one query for each user, float32; item vectors are of `FeatureComponents`."""
        init = nn.initializers.kaiming_normal()

        def dense(features: int, name: str, *, bias: bool = True) -> nn.Dense:
            return nn.Dense(features, use_bias=bias, kernel_init=init, dtype=self.dtype, name=name)

        def attention(x: Float[Array, "*places D"], name: str) -> Float[Array, "*places 1"]:
            # These are logits. The reference adds a bias, which their softmax ignores.
            return dense(1, name, bias=False)(nn.relu(x)).astype(jnp.float32)

        table_init = nn.initializers.normal((2 / self.width) ** 0.5)
        shape = (self.num_users, self.width)
        row = embedding_lookup(self, "table", table_init, shape, history.user)  # [B, D]

        vector = visible_embeddings(history, show_padding=False)
        item, locations = vector[..., : self.width], vector[..., self.width :]
        locations = locations.reshape(*item.shape[:-1], -1, self.width)  # [B, L, S, D]
        who = dense(self.width, "location_user")(row)[:, None, None]
        logits = attention(dense(self.width, "location")(locations) + who, "location_attention")
        looks = jnp.sum(nn.softmax(logits, axis=-2) * locations, axis=-2)  # [B, L, D]

        user = dense(self.width, "user")(row)[:, None]
        logits = user + dense(self.width, "item")(item) + dense(self.width, "looks")(looks)
        logits = attention(logits, "item_attention")
        mask = history.mask[..., None]
        # In an empty history the softmax is uniform over padding, which then gets no weight.
        weight = jnp.where(mask, nn.softmax(jnp.where(mask, logits, -1e9), axis=1), 0)
        return user.astype(jnp.float32) + jnp.sum(weight * item, axis=1, keepdims=True)
