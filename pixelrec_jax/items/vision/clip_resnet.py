"""Residual networks in CLIP's form (Radford et al. 2021): average pooling instead of strides.

The changes to He et al. 2016 are those of ResNet-D (He et al. 2019: a stem of three convolutions,
an average ahead of a shortcut's convolution), Zhang's anti-aliasing (2019) with a 2 x 2 mean, and
pooling by attention. The published form also ends the stem in a mean instead of a maximum.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.blocks import ATTENTION_POOL
from pixelrec_jax.items.vision.layers import Context, split_heads
from pixelrec_jax.items.vision.resnet import NAMES, ConvNorm, ResNet
from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.weights.mapping import TRACKED, Rule, WeightMapping, linear
from pixelrec_jax.weights.transforms import POSITION


def _average(x: Float[Array, "M H W C"], side: int) -> Float[Array, "M H//{side} W//{side} C"]:
    """Returns the means of squares that do not overlap."""
    return x if side == 1 else nn.avg_pool(x, (side, side), (side, side))


class ClipStem(nn.Module):
    """Three convolutions, the first of stride 2, and average pooling."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, image: Float[Array, "M H W 3"], context: Context
    ) -> Float[Array, "M H2 W2 {self.width}"]:
        """Returns a map of a quarter of the image's sides."""
        conv = partial(ConvNorm, kernel=3, dtype=self.dtype)
        x = nn.relu(conv(self.width // 2, stride=2, name="conv_1")(image, context))
        x = nn.relu(conv(self.width // 2, stride=1, name="conv_2")(x, context))
        x = nn.relu(conv(self.width, stride=1, name="conv_3")(x, context))
        return _average(x, 2)


class ClipBottleneck(nn.Module):
    """Residual unit of inner width `width` and output width 4 * width that averages pixels."""

    width: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "M H W C"], context: Context
    ) -> Float[Array, "M H2 W2 {4*self.width}"]:
        """Returns the map after the unit; the stride divides its sides."""
        conv = partial(ConvNorm, stride=1, dtype=self.dtype)
        y = nn.relu(conv(self.width, 1, name="conv_1")(x, context))
        y = nn.relu(conv(self.width, 3, name="conv_2")(y, context))
        y = conv(4 * self.width, 1, name="conv_3")(_average(y, self.stride), context)
        if x.shape != y.shape:
            x = conv(4 * self.width, 1, name="shortcut")(_average(x, self.stride), context)
        return nn.relu(x + y)


class AttentionPool(nn.Module):
    """Pools a map by attention of its mean to the mean and to every place of the map.

    Attributes:
      heads: attention heads.
      features: width of the vector.
      dtype: of computation.
    """

    heads: int
    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"]) -> Float[Array, "M {self.features}"]:
        """Returns one vector for each map."""
        width = x.shape[-1]
        tokens = x.reshape(len(x), -1, width)
        tokens = jnp.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)
        init = nn.initializers.normal(width**-0.5)
        position = self.param("position", init, tokens.shape[1:], jnp.float32)
        tokens = tokens + position[None].astype(tokens.dtype)
        dense = partial(nn.Dense, dtype=self.dtype)
        query = split_heads(dense(width, name="query")(tokens[:, :1]), self.heads)
        key, value = (
            split_heads(dense(width, name=name)(tokens), self.heads) for name in ("key", "value")
        )
        y = jax.nn.dot_product_attention(query, key, value).reshape(-1, width)
        return dense(self.features, name="out")(y)


OPENAI = WeightMapping(
    "openai",
    rules=(
        *NAMES,
        Rule("attnpool.positional_embedding", f"{ATTENTION_POOL}/position", POSITION),
        *linear("attnpool.q_proj", f"{ATTENTION_POOL}/query"),
        *linear("attnpool.k_proj", f"{ATTENTION_POOL}/key"),
        *linear("attnpool.v_proj", f"{ATTENTION_POOL}/value"),
        *linear("attnpool.c_proj", f"{ATTENTION_POOL}/out"),
    ),
    # The prefix is missing where the tower was saved alone.
    prefixes=("visual.",),
    written_prefix="visual.",
    # The text tower.
    ignored=(
        TRACKED,
        r"transformer\..*|ln_final\..*|token_embedding\.weight|positional_embedding",
        r"text_projection|logit_scale|input_resolution|context_length|vocab_size",
    ),
)


def _encoder(units: tuple[int, ...], width: int, heads: int, features: int) -> EncoderSpec:
    attention = partial(AttentionPool, heads=heads, features=features)
    return EncoderSpec(
        partial(ResNet, ClipBottleneck, units, width, stem=ClipStem, attention=attention),
        multiple=32,
        pools=("attention", "mean", "tokens"),
        normalisation="clip",
        mappings=(OPENAI,),
        head_init="torch",
        optional=(ATTENTION_POOL,),
    )


SPECS = {
    "clip_rn50": _encoder((3, 4, 6, 3), width=64, heads=32, features=1024),
    "clip_rn50x4": _encoder((4, 6, 10, 6), width=80, heads=40, features=640),
    "clip_rn50x16": _encoder((6, 8, 18, 8), width=96, heads=48, features=768),
    "clip_rn50x64": _encoder((3, 15, 36, 10), width=128, heads=64, features=1024),
}
