"""What only BEiT has: pooling ahead of the norm, relative positions of a class token."""

import pytest
import torch
from transformers import BeitConfig, BeitModel

from pixelrec_jax.items.vision.beit import SPECS
from pixelrec_jax.items.vision.blocks import resolve_trainable
from tests.items.vision import parity
from tests.items.vision.cases import beit_config, loaded


@pytest.mark.numerical
@pytest.mark.parametrize("pool", ["tokens", "cls"])
def test_other_pools_are_those_of_a_model_without_mean_pooling(pool):
    this = loaded("beit")
    unpooled = BeitModel(beit_config(use_mean_pooling=False)).eval()
    state = this.module.state_dict()
    unpooled.load_state_dict({name.replace("pooler.", ""): x for name, x in state.items()})
    image = parity.random_image(32)
    theirs = unpooled(parity.as_torch(image))
    expected = {"tokens": theirs.last_hidden_state, "cls": theirs.pooler_output}[pool]
    parity.assert_close(this.backbone(image, pool=pool), expected)


@pytest.mark.numerical
def test_relative_positions_are_interpolated_to_another_resolution():
    this = loaded("beit")
    backbone = parity.read(this.case.backbone, (this.case.mapping,), this.tensors, size=48)
    larger = BeitModel(beit_config(image_size=48)).eval()
    adapted = dict(this.module.state_dict())
    for name, table in adapted.items():
        if name.endswith("relative_position_bias_table"):
            grid = table[:-3].T.reshape(1, 4, 7, 7)
            grid = torch.nn.functional.interpolate(grid, size=(11, 11), mode="bicubic")
            adapted[name] = torch.cat([grid.reshape(4, 121).T, table[-3:]])
    larger.load_state_dict(adapted)
    image = parity.random_image(48)
    parity.assert_close(backbone(image), larger(parity.as_torch(image)).pooler_output)


def test_the_published_size_and_what_the_reference_trains():
    backbone = SPECS["beit_b16"].backbone()
    count = parity.parameters(backbone)
    published = BeitConfig(use_relative_position_bias=True)
    with torch.device("meta"):
        theirs = BeitModel(published)
    assert sum(count.values()) == sum(p.numel() for p in theirs.parameters())
    assert backbone.epsilon == published.layer_norm_eps
    assert backbone.heads == published.num_attention_heads
    trainable_blocks = resolve_trainable("last:2", backbone.blocks)
    assert trainable_blocks == ("block_10", "block_11", "norm")
    assert sum(count[name] for name in trainable_blocks) == pytest.approx(14.20e6, abs=5e3)
