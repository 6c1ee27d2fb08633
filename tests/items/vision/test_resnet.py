"""The published sizes of residual networks and what of them is trained."""

import pytest
import torch
import torchvision

from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.resnet import SPECS
from tests.items.vision import parity

LAYERS = ("layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize("name", SPECS)
def test_sizes_are_those_of_torchvision(name):
    backbone = SPECS[name].backbone()
    ours = parity.parameters(backbone)
    with torch.device("meta"):
        module = getattr(torchvision.models, name)()

    def count(prefixes):
        return sum(p.numel() for n, p in module.named_parameters() if n.startswith(prefixes))

    assert ours["stem"] == count(("conv1", "bn1"))
    for n in range(1, 5):
        assert resolve_trainable(f"last:{n}", backbone.blocks) == LAYERS[-n:]
        assert sum(ours[layer] for layer in LAYERS[-n:]) == count(LAYERS[-n:])
