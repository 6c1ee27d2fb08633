"""The published sizes of MobileNetV2 and EfficientNet-Lite0 and what of them is trained."""

import pytest
import torch
from timm import create_model
from torchvision.models import mobilenet_v2

from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.blocks import resolve_trainable
from tests.items.vision import parity


def _lite0() -> list[torch.nn.Module]:
    network = create_model("tf_efficientnet_lite0")
    stem, head = (network.conv_stem, network.bn1), (network.conv_head, network.bn2)
    return [torch.nn.Sequential(*stem), *network.blocks, torch.nn.Sequential(*head)]


@pytest.mark.parametrize(
    ("name", "make", "middle", "total", "last"),
    [
        (
            "mobilenet_v2",
            lambda: mobilenet_v2().features,
            [f"block_{n}" for n in range(1, 18)],
            2_223_872,
            ("block_17", "head"),
        ),
        (
            "efficientnet_lite0",
            _lite0,
            [f"stage_{n}" for n in range(7)],
            3_371_008,
            ("stage_6", "head"),
        ),
    ],
)
def test_sizes_are_the_published_ones(name, make, middle, total, last):
    with torch.device("meta"):
        modules = make()
    backbone = VISION_ENCODERS[name].backbone()
    count = parity.parameters(backbone)
    assert backbone.blocks == ("stem", *middle, "head")
    for block, module in zip(backbone.blocks, modules, strict=True):
        assert count[block] == sum(x.numel() for x in module.parameters())
    assert sum(count.values()) == total
    assert resolve_trainable("last:2", backbone.blocks) == last
