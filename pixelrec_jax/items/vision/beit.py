"""BEiT (Bao et al. 2022, arXiv 2106.08254): a vision transformer with relative positions."""

from functools import partial
from math import isqrt

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.backbone import Backbone, Step
from pixelrec_jax.items.vision.blocks import NORM, POOL
from pixelrec_jax.items.vision.layers import DROP_PATH, Context, DropPath, TokenPool, prepend_token
from pixelrec_jax.items.vision.relative import RelativeAttention
from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.items.vision.vit import PatchEmbedding
from pixelrec_jax.weights.mapping import Rule, WeightMapping, linear, norm
from pixelrec_jax.weights.transforms import PATCHES, RELATIVE, TOKEN


class Stem(nn.Module):
    """Class token and patches, without positions."""

    width: int
    patch: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, image: Float[Array, "M H W 3"]) -> Float[Array, "M S {self.width}"]:
        """Returns the tokens of an image; S = 1 + patches."""
        x = PatchEmbedding(self.width, self.patch, self.dtype, name="embed")(image)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("class_token", nn.initializers.normal(0.02), (self.width,), jnp.float32)
        return prepend_token(token, x)


class Block(nn.Module):
    """Pre-norm transformer block with layer scale (Touvron et al. 2021) and stochastic depth."""

    heads: int
    mlp: int
    epsilon: float
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "M S C"], context: Context) -> Float[Array, "M S C"]:
        """Returns the tokens after the block."""
        width = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype)
        layer_norm = partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)

        def branch(y: Float[Array, "M S C"], n: int) -> Float[Array, "M S C"]:
            scale = self.param(f"scale_{n}", nn.initializers.constant(0.1), (width,), jnp.float32)
            return DropPath(self.drop_path, name=f"drop_{n}")(
                y * scale[None, None].astype(y.dtype), context
            )

        attention = RelativeAttention(
            heads=self.heads,
            side=isqrt(x.shape[1] - 1),
            class_token=True,
            key_bias=False,
            dtype=self.dtype,
            name="attention",
        )
        y = attention(layer_norm(name="norm_1")(x)[:, None])[:, 0]  # one window
        x = x + branch(y, 1)
        y = dense(self.mlp, name="mlp_in")(layer_norm(name="norm_2")(x))
        y = dense(width, name="mlp_out")(nn.gelu(y, approximate=False))
        return x + branch(y, 2)


class Beit(Backbone):
    """Maps square images to tokens, class token first, or to one vector.

    Like the published classifiers, it has a table of relative positions per block and no absolute
    positions. A shared table and absolute positions belong to the paper's masked pretraining.

    Attributes:
      width: C.
      depth: number of blocks.
      heads: attention heads.
      patch: side of a square patch in pixels; divides the image's side.
      mlp: width of the hidden layer of each block.
      epsilon: of the layer norms.
      drop_path: rate of stochastic depth in the last block; it grows linearly from 0 in the first.
      pool: "mean", "tokens" or "cls"; further attributes are those of `Backbone`.
    """

    width: int
    depth: int
    heads: int
    patch: int
    mlp: int
    epsilon: float = 1e-12
    drop_path: float = DROP_PATH.field(0.1)

    @nn.nowrap
    def steps(self) -> tuple[Step, ...]:
        """Returns stem, blocks, pooling and the norm of the pooled tokens."""
        block = partial(
            self.with_remat(Block),
            heads=self.heads,
            mlp=self.mlp,
            epsilon=self.epsilon,
            dtype=self.dtype,
        )
        rates = np.linspace(0, self.drop_path, self.depth).tolist()
        return (
            Step("stem", partial(Stem, self.width, self.patch, self.dtype)),
            *(
                Step(f"block_{n}", partial(block, drop_path=rate), takes_context=True)
                for n, rate in enumerate(rates)
            ),
            Step(POOL, partial(TokenPool, self.pool)),
            Step(NORM, partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)),
        )


_LAYER = "encoder.layer.{n}"
_ATTENTION = f"{_LAYER}.attention.attention"
HUGGINGFACE = WeightMapping(
    "huggingface",
    rules=(
        Rule("embeddings.cls_token", "stem/class_token", TOKEN),
        Rule("embeddings.patch_embeddings.projection.weight", "stem/embed/patch/kernel", PATCHES),
        Rule("embeddings.patch_embeddings.projection.bias", "stem/embed/patch/bias"),
        *norm(f"{_LAYER}.layernorm_before", "block_{n}/norm_1"),
        Rule(
            f"{_ATTENTION}.relative_position_bias.relative_position_bias_table",
            "block_{n}/attention/relative",
            RELATIVE,
        ),
        *linear(f"{_ATTENTION}.query", "block_{n}/attention/query"),
        *linear(f"{_ATTENTION}.key", "block_{n}/attention/key"),
        *linear(f"{_ATTENTION}.value", "block_{n}/attention/value"),
        *linear(f"{_LAYER}.attention.output.dense", "block_{n}/attention/out"),
        Rule(f"{_LAYER}.lambda_1", "block_{n}/scale_1"),
        *norm(f"{_LAYER}.layernorm_after", "block_{n}/norm_2"),
        *linear(f"{_LAYER}.intermediate.dense", "block_{n}/mlp_in"),
        *linear(f"{_LAYER}.output.dense", "block_{n}/mlp_out"),
        Rule(f"{_LAYER}.lambda_2", "block_{n}/scale_2"),
        *norm("pooler.layernorm", "norm"),
    ),
    prefixes=("beit.",),
    ignored=(r"classifier\..*", r".*\.relative_position_index"),
)

SPECS = {
    "beit_b16": EncoderSpec(
        partial(Beit, width=768, depth=12, heads=12, patch=16, mlp=3072),
        multiple=16,
        pools=("mean", "tokens", "cls"),
        mappings=(HUGGINGFACE,),
    ),
}
