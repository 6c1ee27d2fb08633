"""MobileNetV2 (Sandler et al. 2018), and the layers that its descendants share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.backbone import BatchNormBackbone, Step
from pixelrec_jax.items.vision.blocks import POOL
from pixelrec_jax.items.vision.depthwise import Depthwise, pads
from pixelrec_jax.items.vision.layers import BatchNorm, Context, MapPool
from pixelrec_jax.items.vision.resnet import conv_norm
from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.weights.mapping import TRACKED, Rule, WeightMapping


@dataclass(frozen=True)
class Layer:
    """The sizes of an inverted residual, as in the table of a paper.

    Attributes:
      expansion: width of the depthwise convolution, in multiples of the layer's input.
      width: of the output.
      stride, kernel: of the depthwise convolution.
    """

    expansion: int
    width: int
    stride: int = 1
    kernel: int = 3


def repeat(expansion: int, width: int, count: int, stride: int, kernel: int = 3) -> list[Layer]:
    """Returns a row of such a table: `count` layers, only the first with the stride."""
    first, others = (Layer(expansion, width, s, kernel) for s in (stride, 1))
    return [first] + [others] * (count - 1)


# Name and layers of each block between the stem and the head.
Body = tuple[tuple[str, tuple[Layer, ...]], ...]


def layer_by_layer(layers: Sequence[Layer]) -> Body:
    """Returns a block for every layer."""
    return tuple((f"block_{n}", (layer,)) for n, layer in enumerate(layers, 1))


class Unit(nn.Module):
    """Convolution without bias, batch norm and, unless `linear`, ReLU6.

    Attributes:
      width: of the output; None means a depthwise convolution, which keeps the input's.
      kernel, stride: of the convolution.
      linear: whether ReLU6 is left out.
      padding: see `depthwise.pads`.
      epsilon: of the batch norm.
      dtype: of computation.
    """

    width: int | None
    kernel: int = 1
    stride: int = 1
    linear: bool = False
    padding: Literal["torch", "same"] = "torch"
    epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"], context: Context) -> Float[Array, "M H2 W2 C2"]:
        """Returns the output map."""
        x = self._convolution(x.shape[1:3])(x)
        x = BatchNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x, context)
        return x if self.linear else nn.relu6(x)

    def _convolution(self, size: tuple[int, ...]) -> nn.Module:
        if self.width is None:
            return Depthwise(self.kernel, self.stride, self.padding, self.dtype, name="conv")
        init = nn.initializers.he_normal()
        if self.kernel == 1:  # faster on CPU than a 1 x 1 convolution
            return nn.Dense(
                self.width, use_bias=False, kernel_init=init, dtype=self.dtype, name="conv"
            )
        return nn.Conv(
            self.width,
            (self.kernel,) * 2,
            self.stride,
            pads(size, self.kernel, self.stride, self.padding),
            use_bias=False,
            kernel_init=init,
            dtype=self.dtype,
            name="conv",
        )


class InvertedResidual(nn.Module):
    """Expands the channels, convolves each and projects them; adds its input if the shapes agree.

    Attributes:
      layer: the sizes.
      unit: `Unit` with the settings of the network.
    """

    layer: Layer
    unit: Callable[..., Unit]

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"], context: Context) -> Float[Array, "M H2 W2 C2"]:
        """Returns the output map."""
        layer, y = self.layer, x
        if layer.expansion != 1:
            y = self.unit(x.shape[-1] * layer.expansion, name="expand")(y, context)
        y = self.unit(None, layer.kernel, layer.stride, name="depthwise")(y, context)
        y = self.unit(layer.width, linear=True, name="project")(y, context)
        return x + y if y.shape == x.shape else y


class Block(nn.Module):
    """Inverted residuals one after the other."""

    layers: tuple[Layer, ...]
    unit: Callable[..., Unit]

    @nn.compact
    def __call__(self, x: Float[Array, "M H W C"], context: Context) -> Float[Array, "M H2 W2 C2"]:
        """Returns the output map."""
        for n, layer in enumerate(self.layers):
            x = InvertedResidual(layer, self.unit, name=f"layer_{n}")(x, context)
        return x


class MobileNet(BatchNormBackbone):
    """Maps images to the last map's pixels or to their mean.

    Attributes:
      body: the blocks between the stem and the head.
      stem: width of the first convolution, which halves the image.
      head: C, width of the last convolution.
      padding, epsilon: see `Unit`.
      pool: "mean" or "tokens"; further attributes are those of `BatchNormBackbone`.
    """

    body: Body
    stem: int = 32
    head: int = 1280
    padding: str = "torch"
    epsilon: float = 1e-5

    @nn.nowrap
    def steps(self) -> tuple[Step, ...]:
        """Returns stem, the body's blocks, head and pooling."""
        settings = {"padding": self.padding, "epsilon": self.epsilon, "dtype": self.dtype}
        end, block = (partial(self.with_remat(Unit), **settings), self.with_remat(Block))
        unit = partial(Unit, **settings)
        return (
            Step("stem", partial(end, self.stem, 3, 2), takes_context=True),
            *(
                Step(name, partial(block, layers, unit), takes_context=True)
                for name, layers in self.body
            ),
            Step("head", partial(end, self.head), takes_context=True),
            Step(POOL, partial(MapPool, self.pool)),
        )


def layer_rules(source: str, target: str, names: Sequence[str]) -> tuple[Rule, ...]:
    """Returns the rules of an inverted residual.

    Args:
      source: the layer's name in the checkpoint.
      target: the layer's path here.
      names: in the checkpoint, a convolution's and its batch norm's: first those of the depthwise
        convolution, then of the projection and, if there is one, of the expansion.
    """
    units = ("depthwise", "project", "expand")
    names = [f"{source}.{name}" for name in names]
    return tuple(
        rule
        for conv, norm, unit in zip(names[::2], names[1::2], units, strict=False)
        for rule in conv_norm(conv, norm, f"{target}/{unit}")
    )


def torchvision(depth: int) -> WeightMapping:
    """Returns the names of torchvision's MobileNetV2 with `depth` inverted residuals."""
    first = ("conv.0.0", "conv.0.1", "conv.1", "conv.2")
    others = ("conv.1.0", "conv.1.1", "conv.2", "conv.3", "conv.0.0", "conv.0.1")
    head = f"features.{depth + 1}"
    return WeightMapping(
        "torchvision",
        rules=(
            *conv_norm("features.0.0", "features.0.1", "stem"),
            *layer_rules("features.1", "block_1/layer_0", first),
            *layer_rules("features.{n}", "block_{n}/layer_0", others),
            *conv_norm(f"{head}.0", f"{head}.1", "head"),
        ),
        ignored=(r"classifier\..*", TRACKED),
    )


_LAYERS = (  # Table 2
    *repeat(1, 16, 1, 1),
    *repeat(6, 24, 2, 2),
    *repeat(6, 32, 3, 2),
    *repeat(6, 64, 4, 2),
    *repeat(6, 96, 3, 1),
    *repeat(6, 160, 3, 2),
    *repeat(6, 320, 1, 1),
)
SPECS = {
    "mobilenet_v2": EncoderSpec(
        partial(MobileNet, layer_by_layer(_LAYERS)),
        multiple=1,
        pools=("mean", "tokens"),
        normalisation="imagenet",
        mappings=(torchvision(len(_LAYERS)),),
    ),
}
