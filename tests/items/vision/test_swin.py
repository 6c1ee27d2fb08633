"""What only Swin has: windows, also where they do not divide a map or exceed it."""

import pytest
import torch
from transformers import SwinConfig, SwinModel
from transformers.models.swin.modeling_swin import SwinRelativePositionBias

from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.swin import SPECS
from tests.items.vision import parity
from tests.items.vision.cases import SWIN_B, loaded


@pytest.mark.numerical
def test_maps_that_the_window_does_not_divide_are_padded():
    """Maps of 14 and 7 tokens become 16 and 8, both shifted."""
    this = loaded("swin")
    module = this.case.module()  # once it has seen small maps, transformers' shifts no others
    image = parity.random_image(28)
    parity.assert_close(this.backbone(image), module(parity.as_torch(image)).pooler_output)


@pytest.mark.numerical
def test_a_map_smaller_than_the_window_is_one_window():
    """Transformers fails on maps of 2 tokens here, unless its table has the offsets of 2."""
    this = loaded("swin")
    image = parity.random_image(8)
    module = this.case.module()
    for layer in module.encoder.layers[1].blocks:
        table = layer.attention.relative_position_bias.relative_position_bias_table
        centre = table.reshape(7, 7, 2)[2:5, 2:5].reshape(9, 2)
        layer.attention.relative_position_bias = SwinRelativePositionBias(2, (2, 2))
        layer.attention.relative_position_bias.relative_position_bias_table.data = centre
    parity.assert_close(this.backbone(image), module(parity.as_torch(image)).pooler_output)


@pytest.mark.parametrize(
    ("name", "published", "millions"),
    [("swin_t", SwinConfig(), 26.03), ("swin_b", SwinConfig(**SWIN_B), 84.10)],
)
def test_published_sizes_and_what_the_reference_trains(name, published, millions):
    backbone = SPECS[name].backbone()
    count = parity.parameters(backbone)
    with torch.device("meta"):
        theirs = SwinModel(published)
    assert sum(count.values()) == sum(p.numel() for p in theirs.parameters())
    assert backbone.heads == tuple(published.num_heads)
    trainable_blocks = resolve_trainable("last:2", backbone.blocks)
    assert trainable_blocks == ("stage_2", "stage_3", "norm")
    assert sum(count[block] for block in trainable_blocks) == pytest.approx(millions * 1e6, abs=5e3)
