"""The post-norm transformer that sequential user encoders share (Kang and McAuley 2018)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Int

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.dropout import RowDropout
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import Number, Option, Whole
from pixelrec_jax.users.encoder import UserEncoder

LAYER_NORM_EPSILON = 1e-12  # as in BERT and in the reference
LAYERS = Option("number of layers", Whole())
HEADS = Option("attention heads; divides D", Whole())
MLP_RATIO = Option("feed-forward width as a multiple of D", Whole())
DROPOUT = Option(
    "dropout rate after each sub-layer and on attention probabilities", Number(least=0, below=1)
)
INIT_STD = Option("standard deviation of the initial weights", Number(least=0))
_MASKED = -1e9  # finite: a row with nothing visible becomes uniform and not NaN


def normal_init(std: float) -> nn.initializers.Initializer:
    """Returns the initialiser N(0, std^2) that these models use for every matrix and table."""
    return nn.initializers.normal(std)


def masked_softmax(
    logits: Float[Array, "*#logits"], visible: Bool[Array, "*#logits"], *, axis: int = -1
) -> Float[Array, "*#logits"]:
    """Returns the softmax in float32 over the entries of an axis where `visible` is True."""
    return jax.nn.softmax(logits.astype(jnp.float32) + jnp.where(visible, 0, _MASKED), axis)


class PostNormLayer(nn.Module):
    """The base of post-norm layers: each sub-layer ends in dropout, residual and layer norm.

    Attributes:
      heads: attention heads; they divide D.
      mlp_ratio: width of the feed-forward sub-layer as a multiple of D.
      dropout: rate after each sub-layer and on attention probabilities.
      init_std: standard deviation of the initial weights.
      dtype: of computation.
    """

    heads: int
    mlp_ratio: int
    dropout: float
    init_std: float
    dtype: DTypeLike

    def dense(self, features: int, name: str) -> nn.Dense:
        """Returns a dense layer."""
        init = normal_init(self.init_std)
        return nn.Dense(features, kernel_init=init, dtype=self.dtype, name=name)

    def norm(self, name: str) -> nn.LayerNorm:
        """Returns a layer norm."""
        return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=name)

    def drop(self, x: Float[Array, "B ..."], row: Int[Array, " B"] | None) -> Float[Array, "B ..."]:
        """Returns x with dropout, by the numbers of the rows; unchanged without them."""
        return RowDropout(self.dropout)(x, row)

    def split(
        self, x: Float[Array, "*batch D"]
    ) -> Float[Array, "*batch {self.heads} D//{self.heads}"]:
        """Returns x with the last axis split into heads.

        Raises:
          UserError: the heads do not divide it.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(
                f"width={width} is not divisible by user.heads={self.heads}; change one of them"
            )
        return x.reshape(*x.shape[:-1], self.heads, width // self.heads)

    def after_attention(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B L {self.heads} D//{self.heads}"],
        row: Int[Array, " B"] | None,
    ) -> Float[Array, "B L D"]:
        """Returns the layer's output for its input x and the result of attention, `context`."""
        width = x.shape[-1]
        context = self.dense(width, "out")(context.reshape(x.shape))
        x = self.norm("attention_norm")(x + self.drop(context, row))
        hidden = nn.gelu(self.dense(self.mlp_ratio * width, "feed_in")(x), approximate=False)
        hidden = self.dense(width, "feed_out")(hidden)
        return self.norm("feed_norm")(x + self.drop(hidden, row))


class TransformerLayer(PostNormLayer):
    """Self-attention, then feed-forward."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B L D"],
        visible: Bool[Array, "B queries L"],
        row: Int[Array, " B"] | None,
    ) -> Float[Array, "B L D"]:
        """Returns x after the layer; `visible` says which keys (last axis) a query sees."""
        width = x.shape[-1]
        query, key, value = (
            self.split(self.dense(width, name)(x)) for name in ("query", "key", "value")
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(width // self.heads)
        attention = masked_softmax(logits, visible[:, None])
        attention = self.drop(attention.astype(value.dtype), row)
        context = jnp.einsum("bhqk,bkhd->bqhd", attention, value)
        return self.after_attention(x, context, row)


class Transformer(UserEncoder):
    """Runs item vectors with positions through layers; subclasses say which slots a query sees.

    Positions count from the left of the padded history, so the newest item always has the last.
    """

    layers: int = LAYERS.field(2)
    heads: int = HEADS.field(4)
    mlp_ratio: int = MLP_RATIO.field(2)
    dropout: float = DROPOUT.field(0.1)
    init_std: float = INIT_STD.field(0.02)

    def visible(self, mask: Bool[Array, "B L"]) -> Bool[Array, "B queries L"]:
        """Returns which keys (last axis) a query sees; one row if all queries see the same."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, history: History, *, train: bool) -> Float[Array, "B L {self.width}"]:
        """Returns a query for every slot, float32."""
        shape = history.item_embeddings.shape[-2:]
        position = self.param("position", normal_init(self.init_std), shape, jnp.float32)
        x = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="norm")(
            history.item_embeddings + position[None]
        )
        row = history.row_numbers() if train else None
        x = RowDropout(self.dropout)(x, row)
        visible = self.visible(history.mask)
        for n in range(self.layers):
            x = TransformerLayer(
                heads=self.heads,
                mlp_ratio=self.mlp_ratio,
                dropout=self.dropout,
                init_std=self.init_std,
                dtype=self.dtype,
                name=f"layer_{n}",
            )(x, visible, row)
        return x.astype(jnp.float32)
