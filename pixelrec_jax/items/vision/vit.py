"""Vision transformers (Dosovitskiy et al. 2021), plain and of MAE; those of CLIP build on them.

MAE (He et al. 2022) is a plain ViT that was pre-trained to fill in masked patches; masking and the
decoder belong to the pre-training. Published weights may add a classifier after the tokens, which
is left out.
"""

from functools import partial
from math import isqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, PRNGKeyArray

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.backbone import Backbone, Step
from pixelrec_jax.items.vision.blocks import NORM, POOL
from pixelrec_jax.items.vision.layers import TokenPool, prepend_token, split_heads
from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.weights.mapping import Rule, WeightMapping, linear, norm
from pixelrec_jax.weights.transforms import BATCHED_POSITION, PATCHES, TOKEN

_normal = nn.initializers.normal(0.02)


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns CLIP's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": partial(nn.gelu, approximate=False), "quick_gelu": quick_gelu}


def sine_cosine(
    key: PRNGKeyArray, shape: tuple[int, int], dtype: DTypeLike
) -> Float[Array, "{shape[0]} {shape[1]}"]:
    """Returns MAE's initial position table [1 + g * g, C] for a grid of side g.

    The class token's row is zero. In the others the first half holds sines and cosines of the
    column at C / 4 frequencies, and the second half those of the row.
    """
    del key
    length, width = shape
    angle = np.arange(isqrt(length - 1))[:, None] / 1e4 ** (4 * np.arange(width // 4) / width)
    wave = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)  # [g, C / 2]
    column, row = np.tile(wave, (len(wave), 1)), np.repeat(wave, len(wave), axis=0)
    table = np.concatenate([column, row], axis=1)
    return jnp.asarray(np.concatenate([np.zeros((1, width)), table]), dtype)


class Block(nn.Module):
    """Pre-norm transformer block."""

    heads: int
    mlp: int
    activation: str
    epsilon: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "M S C"]) -> Float[Array, "M S C"]:
        """Returns the tokens after the block."""
        width = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype)
        layer_norm = partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        y = layer_norm(name="norm_1")(x)
        query, key, value = (
            split_heads(dense(width, name=name)(y), self.heads)
            for name in ("query", "key", "value")
        )
        context = jax.nn.dot_product_attention(query, key, value).reshape(x.shape)
        x = x + dense(width, name="out")(context)
        y = dense(self.mlp, name="mlp_in")(layer_norm(name="norm_2")(x))
        y = ACTIVATIONS[self.activation](y)
        return x + dense(width, name="mlp_out")(y)


class PatchEmbedding(nn.Module):
    """Cuts an image into patches and projects each.

    A convolution with a stride as large as its kernel is one matrix product of flattened patches.
    """

    width: int
    patch: int
    dtype: DTypeLike
    use_bias: bool = True

    @nn.compact
    def __call__(
        self, image: Float[Array, "M H W C"]
    ) -> Float[Array, "M H//{self.patch} W//{self.patch} {self.width}"]:
        """Returns a map with a place for each patch."""
        m, height, breadth, channels = image.shape
        p, rows, columns = self.patch, height // self.patch, breadth // self.patch
        x = image.reshape(m, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(m, rows, columns, p * p * channels)
        return nn.Dense(self.width, use_bias=self.use_bias, dtype=self.dtype, name="patch")(x)


class Stem(nn.Module):
    """Patches, class token, position embedding and, in CLIP, a layer norm."""

    width: int
    patch: int
    clip: bool
    epsilon: float
    position_init: nn.initializers.Initializer
    dtype: DTypeLike

    @nn.compact
    def __call__(self, image: Float[Array, "M H W 3"]) -> Float[Array, "M S {self.width}"]:
        """Returns the tokens of an image; S = 1 + patches."""
        embed = PatchEmbedding(
            self.width, self.patch, self.dtype, use_bias=not self.clip, name="embed"
        )
        x = embed(image)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("class_token", _normal, (self.width,), jnp.float32)
        x = prepend_token(token, x)
        shape = (x.shape[1], self.width)
        position = self.param("position", self.position_init, shape, jnp.float32)
        x = x + position[None].astype(x.dtype)
        if not self.clip:
            return x
        return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)


class VisionTransformer(Backbone, kw_only=True):
    """Maps images to tokens, class token first, or to one vector.

    Attributes:
      width: C.
      depth: number of blocks.
      heads: attention heads.
      patch: side of a square patch in pixels; divides the image's sides.
      mlp: width of the hidden layer of each block.
      clip: whether it has the form of CLIP: a layer norm ahead of the blocks, and no norm after
        them, because the reference reads the last hidden state, which comes before that norm.
      epsilon: of the layer norms.
      activation: of the hidden layer of each block, a key of `ACTIVATIONS`.
      position_init: how the position embedding [S, C] starts; even in MAE it is a parameter.
      pool: "tokens", "cls" or "mean"; further attributes are those of `Backbone`.
    """

    width: int
    depth: int
    heads: int
    patch: int
    mlp: int
    clip: bool = False
    epsilon: float = 1e-6
    activation: str = "gelu"
    position_init: nn.initializers.Initializer = _normal
    pool: str = "tokens"

    @nn.nowrap
    def steps(self) -> tuple[Step, ...]:
        """Returns stem, blocks, norm (not in CLIP) and pooling; train mode changes none of them."""
        stem = partial(
            Stem,
            self.width,
            self.patch,
            self.clip,
            self.epsilon,
            self.position_init,
            self.dtype,
        )
        block = partial(
            self.with_remat(Block), self.heads, self.mlp, self.activation, self.epsilon, self.dtype
        )
        last = partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        return (
            Step("stem", stem),
            *(Step(f"block_{n}", block) for n in range(self.depth)),
            *([] if self.clip else [Step(NORM, last)]),
            Step(POOL, partial(TokenPool, self.pool)),
        )


_VIT = "encoder.layer.{n}"
# For plain ViT and for MAE; files of MAE add a decoder.
VIT_HUGGINGFACE = WeightMapping(
    "huggingface",
    rules=(
        Rule("embeddings.cls_token", "stem/class_token", TOKEN),
        Rule("embeddings.patch_embeddings.projection.weight", "stem/embed/patch/kernel", PATCHES),
        Rule("embeddings.patch_embeddings.projection.bias", "stem/embed/patch/bias"),
        Rule("embeddings.position_embeddings", "stem/position", BATCHED_POSITION),
        *linear(f"{_VIT}.attention.attention.query", "block_{n}/query"),
        *linear(f"{_VIT}.attention.attention.key", "block_{n}/key"),
        *linear(f"{_VIT}.attention.attention.value", "block_{n}/value"),
        *linear(f"{_VIT}.attention.output.dense", "block_{n}/out"),
        *linear(f"{_VIT}.intermediate.dense", "block_{n}/mlp_in"),
        *linear(f"{_VIT}.output.dense", "block_{n}/mlp_out"),
        *norm(f"{_VIT}.layernorm_before", "block_{n}/norm_1"),
        *norm(f"{_VIT}.layernorm_after", "block_{n}/norm_2"),
        *norm("layernorm", "norm"),
    ),
    prefixes=("vit.",),
    ignored=(
        r"(vit\.)?(pooler\..*|embeddings\.mask_token)",
        r"classifier\..*|decoder\..*",
    ),
)

_SMALL = {"width": 384, "depth": 12, "heads": 6, "mlp": 1536}
BASE = {"width": 768, "depth": 12, "heads": 12, "mlp": 3072}
LARGE = {"width": 1024, "depth": 24, "heads": 16, "mlp": 4096}

_vit = partial(VisionTransformer, epsilon=1e-12)  # that of the published configs
TOKENS = ("tokens", "cls", "mean")
_of_vit = partial(EncoderSpec, pools=("cls", "mean", "tokens"), mappings=(VIT_HUGGINGFACE,))
SPECS = {
    "vit_s16": _of_vit(partial(_vit, **_SMALL, patch=16), multiple=16),
    "vit_b16": _of_vit(partial(_vit, **BASE, patch=16), multiple=16),
    "vit_l16": _of_vit(partial(_vit, **LARGE, patch=16), multiple=16),
    "mae_b16": _of_vit(
        partial(_vit, **BASE, patch=16, position_init=sine_cosine),
        multiple=16,
        normalisation="imagenet",
    ),
    # Small enough to learn from scratch on a laptop; the default of the toy dataset.
    "vit_toy": EncoderSpec(
        partial(VisionTransformer, width=64, depth=2, heads=4, patch=8, mlp=256),
        multiple=8,
        pools=TOKENS,
    ),
}
