"""LightSANs: attention to a few latent interests (Fan et al., SIGIR 2021)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.dropout import RowDropout
from pixelrec_jax.system.options import Flag, Option, Whole
from pixelrec_jax.users.encoder import SHOW_PADDING, UserEncoder
from pixelrec_jax.users.transformer import (
    DROPOUT,
    HEADS,
    INIT_STD,
    LAYER_NORM_EPSILON,
    LAYERS,
    MLP_RATIO,
    PostNormLayer,
    masked_softmax,
    normal_init,
)


class LightSANsLayer(PostNormLayer):
    """Attention of items to interests plus attention among positions, then feed-forward.

    Attributes:
      interests: number of interests, to which keys and values are pooled.
      query_softmax: see `LightSANs`.
      only_last: whether only the last slot is computed: after the last layer, nothing reads the
        others.
    """

    interests: int
    query_softmax: bool
    only_last: bool

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        position: Float[Array, "L D"],
        visible: Bool[Array, "B L"],
        row: Int[Array, " B"] | None,
    ) -> Float[Array, "B queries D"]:
        """Returns the vectors of all slots or of the last; attention reads `visible` slots."""
        width = x.shape[-1]
        query, key, value = (self.dense(width, name)(x) for name in ("query", "key", "value"))
        query, values = self.split(query), self.split(value)
        key = self.split(self._pool(key, visible, name="key_interests"))
        value = self.split(self._pool(value, visible, name="value_interests"))
        position = self.norm("position_norm")(position)
        position_query, position_key = (
            self.split(self.dense(width, name)(position))
            for name in ("position_query", "position_key")
        )
        scale = (width // self.heads) ** -0.5
        item = scale * jnp.einsum("bqhd,bkhd->bhqk", query, key)
        # Scaled twice, the second time for two kinds of attention, as in the reference.
        order = 2**-0.5 * scale**2 * jnp.einsum("qhd,khd->hqk", position_query, position_key)[None]

        of_query, of_key = visible[:, None, :, None], visible[:, None, None, :]
        if self.query_softmax:
            item = masked_softmax(item, of_query, axis=-2)
            order = masked_softmax(order, of_query, axis=-2) * of_key
        else:
            item = jax.nn.softmax(item.astype(jnp.float32))
            order = masked_softmax(order, of_key)
        item = self.drop(item.astype(value.dtype), row)
        context = jnp.einsum("bhqk,bkhd->bqhd", item, value)
        context += jnp.einsum("bhqk,bkhd->bqhd", order.astype(value.dtype), values)
        if self.only_last:
            x, context = x[:, -1:], context[:, -1:]
        return self.after_attention(x, context, row)

    def _pool(
        self, x: Float[Array, "B L D"], visible: Bool[Array, "B L"], *, name: str
    ) -> Float[Array, "B {self.interests} D"]:
        """Returns interests: means of slots, weighted by how much each slot belongs to them."""
        shape = (x.shape[-1], self.interests)
        # Much larger than the other weights, so that interests differ from the start.
        interest = self.param(name, normal_init(1.0), shape, jnp.float32).astype(x.dtype)
        share = masked_softmax(x @ interest, visible[..., None], axis=-2)
        return jnp.einsum("blk,bld->bkd", share.astype(x.dtype), x)


class LightSANs(UserEncoder):
    """Encodes the user after the whole history; every slot attends to earlier and later ones.

    As in the reference, interests start N(0, 1) and all other weights N(0, init_std^2). If padding
    is shown, attention reads it like any item.
    """

    layers: int = LAYERS.field(1)
    interests: int = Option("interests, to which keys and values are pooled", Whole()).field(3)
    heads: int = HEADS.field(4)
    mlp_ratio: int = MLP_RATIO.field(2)
    dropout: float = DROPOUT.field(0.1)
    init_std: float = INIT_STD.field(0.02)
    query_softmax: bool = Option(
        "whether attention sums to one over queries, as in the reference, and not over keys", Flag()
    ).field(False)
    show_padding: bool = SHOW_PADDING.field(False)

    @nn.compact
    def __call__(self, history: History, *, train: bool) -> Float[Array, "B 1 {self.width}"]:
        """Returns one query for each user, float32."""
        shape = history.item_embeddings.shape[-2:]
        position = self.param("position", normal_init(self.init_std), shape, jnp.float32)
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")(
            history.item_embeddings
        )
        row = history.row_numbers() if train else None
        x = RowDropout(self.dropout)(x, row)
        for n in range(self.layers):
            x = LightSANsLayer(
                heads=self.heads,
                mlp_ratio=self.mlp_ratio,
                dropout=self.dropout,
                init_std=self.init_std,
                dtype=self.dtype,
                interests=self.interests,
                query_softmax=self.query_softmax,
                only_last=n == self.layers - 1,
                name=f"layer_{n}",
            )(x, position, history.mask | self.show_padding, row)
        return x.astype(jnp.float32)
