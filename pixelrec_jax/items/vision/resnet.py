"""Residual networks (He et al. 2016), and the backbone that they share with CLIP's form."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Float

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.backbone import BatchNormBackbone, Step
from pixelrec_jax.items.vision.blocks import ATTENTION_POOL, POOL
from pixelrec_jax.items.vision.layers import BatchNorm, Context, MapPool
from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.weights.mapping import TRACKED, Rule, WeightMapping, batch_norm
from pixelrec_jax.weights.transforms import CONV, POINTWISE, Transform


class ConvNorm(nn.Module):
    """Convolution without bias, then batch norm.

    Attributes:
      features: width of the output.
      kernel: side of the kernel in pixels, odd; the border is padded by half of it.
      stride: in pixels.
      dtype: of computation.
    """

    features: int
    kernel: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "M H W C"], context: Context
    ) -> Float[Array, "M H2 W2 {self.features}"]:
        """Returns the map after the norm; the stride divides its sides."""
        # He et al. 2015, as in torchvision.
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        if self.kernel == 1:  # faster as a matrix product
            dense = nn.Dense(
                self.features, use_bias=False, dtype=self.dtype, kernel_init=init, name="conv"
            )
            x = dense(x[:, :: self.stride, :: self.stride])
        else:
            x = nn.Conv(
                self.features,
                (self.kernel, self.kernel),
                self.stride,
                padding=self.kernel // 2,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=init,
                name="conv",
            )(x)
        return BatchNorm(dtype=self.dtype, name="norm")(x, context)


class Stem(nn.Module):
    """A convolution with a kernel of side 7 and max pooling, each of stride 2."""

    width: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, image: Float[Array, "M H W 3"], context: Context
    ) -> Float[Array, "M H2 W2 {self.width}"]:
        """Returns a map of a quarter of the image's sides."""
        x = nn.relu(ConvNorm(self.width, 7, 2, self.dtype, name="conv_1")(image, context))
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Basic(nn.Module):
    """Residual unit of two convolutions; `width` is that of its output."""

    width: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "M H W C"], context: Context
    ) -> Float[Array, "M H2 W2 {self.width}"]:
        """Returns the map after the unit; the stride divides its sides."""
        conv = partial(ConvNorm, self.width, dtype=self.dtype)
        y = nn.relu(conv(3, self.stride, name="conv_1")(x, context))
        y = conv(3, 1, name="conv_2")(y, context)
        if x.shape != y.shape:
            x = conv(1, self.stride, name="shortcut")(x, context)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """Residual unit of three convolutions with inner width `width` and output width 4 * width.

    The middle convolution has the stride, as in all published weights; in the paper the first one
    has it.
    """

    width: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "M H W C"], context: Context
    ) -> Float[Array, "M H2 W2 {4*self.width}"]:
        """Returns the map after the unit; the stride divides its sides."""
        conv = partial(ConvNorm, dtype=self.dtype)
        y = nn.relu(conv(self.width, 1, 1, name="conv_1")(x, context))
        y = nn.relu(conv(self.width, 3, self.stride, name="conv_2")(y, context))
        y = conv(4 * self.width, 1, 1, name="conv_3")(y, context)
        if x.shape != y.shape:
            x = conv(4 * self.width, 1, self.stride, name="shortcut")(x, context)
        return nn.relu(x + y)


class Layer(nn.Module):
    """Residual units of one width; only the first has the stride."""

    unit: type[nn.Module]
    units: int
    width: int
    stride: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"], context: Context) -> Float[Array, "M H2 W2 C2"]:
        """Returns the map after the units; the stride divides its sides."""
        for n in range(self.units):
            stride = self.stride if n == 0 else 1
            x = self.unit(self.width, stride, self.dtype, name=f"unit_{n}")(x, context)
        return x


class ResNet(BatchNormBackbone):
    """Maps images to the places of the last map as tokens, or to one vector.

    Attributes:
      unit: makes a residual unit from (width, stride, dtype).
      units: number of units in each layer.
      width: of the first layer; each further layer doubles it and halves the map.
      stem: makes the module before the layers from (width, dtype).
      attention: makes the attention pooling, for `pool` = "attention".
      pool: "mean", "tokens" or "attention"; further attributes are those of `BatchNormBackbone`.
    """

    unit: type[nn.Module]
    units: tuple[int, ...]
    width: int
    stem: type[nn.Module] = Stem
    attention: Callable[..., nn.Module] | None = None

    @nn.nowrap
    def steps(self) -> tuple[Step, ...]:
        """Returns stem, layers and pooling, which has weights only if it is attention."""
        layer = partial(Layer, self.with_remat(self.unit), dtype=self.dtype)
        layers = (
            partial(layer, units, self.width * 2**n, 2 if n else 1)
            for n, units in enumerate(self.units)
        )
        if self.pool == "attention":
            assert self.attention is not None, "its spec lists this pool only with the module"
            pool = Step(ATTENTION_POOL, partial(self.attention, dtype=self.dtype))
        else:
            pool = Step(POOL, partial(MapPool, self.pool))
        return (
            Step(
                "stem",
                partial(self.with_remat(self.stem), self.width, self.dtype),
                takes_context=True,
            ),
            *(Step(f"layer{n}", layer, takes_context=True) for n, layer in enumerate(layers, 1)),
            pool,
        )


# A kernel of one pixel is a matrix here; the parameter's shape says which form it has.
_KERNEL = Transform(
    lambda x, shape: (POINTWISE if len(shape) == 2 else CONV).read(x, shape),
    lambda x: (POINTWISE if x.ndim == 2 else CONV).write(x),
)


def conv_norm(conv: str, norm: str, target: str) -> tuple[Rule, ...]:
    """Returns the rules of a convolution and its batch norm, which checkpoints name apart."""
    kernel = Rule(f"{conv}.weight", f"{target}/conv/kernel", _KERNEL)
    return kernel, *batch_norm(norm, f"{target}/norm")


_UNIT, _OURS = "layer{s}.{n}", "layer{s}/unit_{n}"
NAMES = (  # those of torchvision and of CLIP
    *conv_norm("conv{c}", "bn{c}", "stem/conv_{c}"),
    *conv_norm(f"{_UNIT}.conv{{c}}", f"{_UNIT}.bn{{c}}", f"{_OURS}/conv_{{c}}"),
    *conv_norm(f"{_UNIT}.downsample.0", f"{_UNIT}.downsample.1", f"{_OURS}/shortcut"),
)
TORCHVISION = WeightMapping("torchvision", NAMES, ignored=(TRACKED, r"fc\..*"))


def _huggingface(source: str, target: str) -> tuple[Rule, ...]:
    return conv_norm(f"{source}.convolution", f"{source}.normalization", target)


def _huggingface_layer(source: str, target: str) -> tuple[Rule, ...]:
    return (
        *_huggingface(f"{source}.layer.0", f"{target}/conv_1"),
        *_huggingface(f"{source}.layer.1", f"{target}/conv_2"),
        *_huggingface(f"{source}.layer.2", f"{target}/conv_3"),
        *_huggingface(f"{source}.shortcut", f"{target}/shortcut"),
    )


HUGGINGFACE = WeightMapping(
    "huggingface",
    rules=(
        *_huggingface("embedder.embedder", "stem/conv_1"),
        *_huggingface_layer("encoder.stages.0.layers.{n}", "layer1/unit_{n}"),
        *_huggingface_layer("encoder.stages.1.layers.{n}", "layer2/unit_{n}"),
        *_huggingface_layer("encoder.stages.2.layers.{n}", "layer3/unit_{n}"),
        *_huggingface_layer("encoder.stages.3.layers.{n}", "layer4/unit_{n}"),
    ),
    prefixes=("resnet.",),
    ignored=(TRACKED, r"classifier\..*"),
)

_vision = partial(
    EncoderSpec,
    multiple=1,
    pools=("mean", "tokens"),
    normalisation="imagenet",
    mappings=(TORCHVISION, HUGGINGFACE),
    head_init="torch",
)
SPECS = {
    "resnet18": _vision(partial(ResNet, Basic, (2, 2, 2, 2), 64)),
    "resnet34": _vision(partial(ResNet, Basic, (3, 4, 6, 3), 64)),
    "resnet50": _vision(partial(ResNet, Bottleneck, (3, 4, 6, 3), 64)),
}
