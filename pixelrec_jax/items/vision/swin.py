"""Swin transformers (Liu et al. 2021, arXiv 2103.14030): attention in shifted windows."""

from collections.abc import Callable
from functools import partial
from itertools import accumulate

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.backbone import Backbone, Step
from pixelrec_jax.items.vision.blocks import NORM, POOL
from pixelrec_jax.items.vision.layers import DROP_PATH, Context, DropPath, MapPool
from pixelrec_jax.items.vision.relative import RelativeAttention
from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.items.vision.vit import PatchEmbedding
from pixelrec_jax.weights.mapping import Rule, WeightMapping, linear, norm
from pixelrec_jax.weights.transforms import LINEAR, PATCHES

_EPSILON = 1e-5
_MLP_RATIO = 4
_FAR = -100.0  # added to the attention of places that only the cyclic shift makes neighbours


def _split(
    x: Shaped[Array, "M H W C"], window: int
) -> Shaped[Array, "M windows {window*window} C"]:
    """Returns the places of a map by windows, row by row."""
    m, height, width, channels = x.shape
    x = x.reshape(m, height // window, window, width // window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(m, -1, window * window, channels)


def _join(
    x: Float[Array, "M windows {window*window} C"], shape: tuple[int, ...], window: int
) -> Float[Array, "M H W C"]:
    """Returns the map of this shape that `_split` split."""
    m, height, width, channels = shape
    x = x.reshape(m, height // window, width // window, window, window, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def _mask(height: int, width: int, window: int, shift: int) -> Float[np.ndarray, "windows 1 S S"]:
    """Returns `_FAR` where a shifted window joins opposite ends of the map, and 0 elsewhere."""
    wrapped = np.add.outer(
        2 * (np.arange(height) >= height - shift), 1 * (np.arange(width) >= width - shift)
    )
    side = _split(wrapped[None, :, :, None], window)[0, :, :, 0]
    return np.where(side[:, :, None] == side[:, None], 0, _FAR).astype(np.float32)[:, None]


def _in_windows(
    attention: Callable[..., Float[Array, "M windows S C"]],
    x: Float[Array, "M H W C"],
    *,
    window: int,
    shifted: bool,
) -> Float[Array, "M H W C"]:
    """Returns the map after `attention` within its windows.

    If the window does not divide the map, zeros are added at its bottom and right, and attention
    reads them. A map that is not larger than the window is one window and is not shifted.
    """
    height, width = x.shape[1:3]
    window = min(window, height, width)
    shift = window // 2 if shifted and window < min(height, width) else 0
    x = jnp.pad(x, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
    padded = x.shape
    mask = _mask(*padded[1:3], window, shift) if shift else None
    x = attention(_split(jnp.roll(x, (-shift, -shift), (1, 2)), window), mask)
    x = jnp.roll(_join(x, padded, window), (shift, shift), (1, 2))
    return x[:, :height, :width]


class Layer(nn.Module):
    """Pre-norm transformer layer; stochastic depth drops its attention.

    The authors' code also drops the MLP. The library transformers, which the reference runs, does
    not.
    """

    heads: int
    window: int
    shifted: bool
    drop_path: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"], context: Context) -> Float[Array, "M H W C"]:
        """Returns the map after the layer."""
        width = x.shape[-1]
        dense = partial(nn.Dense, dtype=self.dtype)
        layer_norm = partial(nn.LayerNorm, epsilon=_EPSILON, dtype=self.dtype)
        attention = RelativeAttention(
            heads=self.heads,
            side=self.window,
            class_token=False,
            key_bias=True,
            dtype=self.dtype,
            name="attention",
        )
        y = layer_norm(name="norm_1")(x)
        y = _in_windows(attention, y, window=self.window, shifted=self.shifted)
        x = x + DropPath(self.drop_path, name="drop")(y, context)
        y = dense(_MLP_RATIO * width, name="mlp_in")(layer_norm(name="norm_2")(x))
        return x + dense(width, name="mlp_out")(nn.gelu(y, approximate=False))


class Stage(nn.Module):
    """Layers, every other one with shifted windows, and the merging of patches for the next stage.

    In the paper the merging begins the next stage; in the published weights it ends this one.

    Attributes:
      layer: `Layer`, which may be a unit of rematerialisation.
      heads: attention heads.
      window: side of a window in tokens.
      drop_paths: rate of stochastic depth of each layer.
      merge: whether 2 x 2 patches of width C become one of width 2 C at the end.
      dtype: of computation.
    """

    layer: type[nn.Module]
    heads: int
    window: int
    drop_paths: tuple[float, ...]
    merge: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"], context: Context) -> Float[Array, "M H2 W2 C2"]:
        """Returns the map after the layers; `merge` halves its sides and doubles its width."""
        for n, rate in enumerate(self.drop_paths):
            shifted = n % 2 == 1
            layer = self.layer(
                self.heads, self.window, shifted, rate, self.dtype, name=f"layer_{n}"
            )
            x = layer(x, context)
        if not self.merge:
            return x
        m, height, width, channels = x.shape
        x = x.reshape(m, height // 2, 2, width // 2, 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(m, height // 2, width // 2, 4 * channels)
        x = nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name="merge_norm")(x)
        return nn.Dense(2 * channels, use_bias=False, dtype=self.dtype, name="merge")(x)


class Stem(nn.Module):
    """Patches with a norm."""

    width: int
    patch: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, image: Float[Array, "M H W 3"]
    ) -> Float[Array, "M rows columns {self.width}"]:
        """Returns a map with a place for each patch."""
        x = PatchEmbedding(self.width, self.patch, self.dtype, name="embed")(image)
        return nn.LayerNorm(epsilon=_EPSILON, dtype=self.dtype, name="norm")(x)


class Swin(Backbone):
    """Maps images to the tokens of the last stage or to their mean.

    Attributes:
      width: of the tokens of the first stage; it doubles from stage to stage.
      depths: layers per stage.
      heads: attention heads per stage.
      window: side of the windows in tokens.
      patch: side of a square patch in pixels; patch * 2^(stages - 1) divides the image's sides.
      drop_path: rate of stochastic depth in the last layer; it grows linearly from 0 in the first.
      pool: "mean" or "tokens"; further attributes are those of `Backbone`.
    """

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7
    patch: int = 4
    drop_path: float = DROP_PATH.field(0.1)

    @nn.nowrap
    def steps(self) -> tuple[Step, ...]:
        """Returns stem, stages, norm and pooling."""
        stage = partial(Stage, self.with_remat(Layer), window=self.window, dtype=self.dtype)
        rates = tuple(np.linspace(0, self.drop_path, sum(self.depths)).tolist())
        stages = (
            partial(
                stage,
                heads=self.heads[n],
                drop_paths=rates[end - self.depths[n] : end],
                merge=end < sum(self.depths),
            )
            for n, end in enumerate(accumulate(self.depths))
        )
        return (
            Step("stem", partial(Stem, self.width, self.patch, self.dtype)),
            *(Step(f"stage_{n}", stage, takes_context=True) for n, stage in enumerate(stages)),
            Step(NORM, partial(nn.LayerNorm, epsilon=_EPSILON, dtype=self.dtype)),
            Step(POOL, partial(MapPool, self.pool)),
        )


_SOURCE, _TARGET = "encoder.layers.{n}.blocks.{m}", "stage_{n}/layer_{m}"
_ATTENTION = f"{_TARGET}/attention"
HUGGINGFACE = WeightMapping(
    "huggingface",
    rules=(
        Rule("embeddings.patch_embeddings.projection.weight", "stem/embed/patch/kernel", PATCHES),
        Rule("embeddings.patch_embeddings.projection.bias", "stem/embed/patch/bias"),
        *norm("embeddings.norm", "stem/norm"),
        *norm(f"{_SOURCE}.layernorm_before", f"{_TARGET}/norm_1"),
        Rule(f"{_SOURCE}.attention.self.relative_position_bias_table", f"{_ATTENTION}/relative"),
        *linear(f"{_SOURCE}.attention.self.query", f"{_ATTENTION}/query"),
        *linear(f"{_SOURCE}.attention.self.key", f"{_ATTENTION}/key"),
        *linear(f"{_SOURCE}.attention.self.value", f"{_ATTENTION}/value"),
        *linear(f"{_SOURCE}.attention.output.dense", f"{_ATTENTION}/out"),
        *norm(f"{_SOURCE}.layernorm_after", f"{_TARGET}/norm_2"),
        *linear(f"{_SOURCE}.intermediate.dense", f"{_TARGET}/mlp_in"),
        *linear(f"{_SOURCE}.output.dense", f"{_TARGET}/mlp_out"),
        *norm("encoder.layers.{n}.downsample.norm", "stage_{n}/merge_norm"),
        Rule("encoder.layers.{n}.downsample.reduction.weight", "stage_{n}/merge/kernel", LINEAR),
        *norm("layernorm", "norm"),
    ),
    prefixes=("swin.",),
    ignored=(r"classifier\..*", r".*\.(relative_position_index|attn_mask)"),
)

_spec = partial(
    EncoderSpec,
    multiple=32,
    pools=("mean", "tokens"),
    normalisation="imagenet",
    mappings=(HUGGINGFACE,),
)
SPECS = {
    "swin_t": _spec(partial(Swin, width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24))),
    "swin_b": _spec(partial(Swin, width=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32))),
}
