"""EfficientNet-Lite0 (Tan & Le 2019; the Lite form: github.com/tensorflow/tpu, efficientnet/lite).

The Lite form leaves squeeze-and-excitation out and has ReLU6 instead of swish. That makes it a
MobileNetV2 with other sizes, TensorFlow's padding and its epsilon. The published weights were
trained with stochastic depth; fine-tuning here does without it.
"""

from collections.abc import Sequence
from functools import partial

from pixelrec_jax.items.vision.mobilenet import (
    Body,
    Layer,
    MobileNet,
    layer_rules,
    repeat,
)
from pixelrec_jax.items.vision.resnet import conv_norm
from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.weights.mapping import TRACKED, WeightMapping


def by_stage(stages: Sequence[Sequence[Layer]]) -> Body:
    """Returns a block for every stage."""
    return tuple((f"stage_{n}", tuple(layers)) for n, layers in enumerate(stages))


TIMM = WeightMapping(
    "timm",
    rules=(
        *conv_norm("conv_stem", "bn1", "stem"),
        *layer_rules("blocks.0.{i}", "stage_0/layer_{i}", ("conv_dw", "bn1", "conv_pw", "bn2")),
        *layer_rules(
            "blocks.{s}.{i}",
            "stage_{s}/layer_{i}",
            ("conv_dw", "bn2", "conv_pwl", "bn3", "conv_pw", "bn1"),
        ),
        *conv_norm("conv_head", "bn2", "head"),
    ),
    ignored=(r"classifier\..*", TRACKED),
)


def efficientnet_pytorch(body: Body) -> WeightMapping:
    """Returns the names of the package efficientnet-pytorch; it counts layers across stages."""
    names = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2", "_expand_conv", "_bn0")
    layers = [f"{block}/layer_{n}" for block, layers in body for n in range(len(layers))]
    rules = (layer_rules(f"_blocks.{n}", layer, names) for n, layer in enumerate(layers))
    return WeightMapping(
        "efficientnet-pytorch",
        rules=(
            *conv_norm("_conv_stem", "_bn0", "stem"),
            *(rule for layer in rules for rule in layer),
            *conv_norm("_conv_head", "_bn1", "head"),
        ),
        ignored=(r"_fc\..*", TRACKED),
    )


LITE = partial(MobileNet, padding="same", epsilon=1e-3)
_STAGES = by_stage(
    (
        repeat(1, 16, 1, 1),
        repeat(6, 24, 2, 2),
        repeat(6, 40, 2, 2, kernel=5),
        repeat(6, 80, 3, 2),
        repeat(6, 112, 3, 1, kernel=5),
        repeat(6, 192, 4, 2, kernel=5),
        repeat(6, 320, 1, 1),
    )
)
SPECS = {
    "efficientnet_lite0": EncoderSpec(
        partial(LITE, _STAGES),
        multiple=1,
        pools=("mean", "tokens"),
        mappings=(TIMM, efficientnet_pytorch(_STAGES)),
    ),
}
