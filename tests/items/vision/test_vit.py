"""Vision transformers: positions, published sizes and what of them is trained."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from open_clip.pos_embed import get_2d_sincos_pos_embed
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.vit import VisionTransformer, sine_cosine
from tests.items.vision import parity
from tests.items.vision.cases import loaded


@pytest.mark.numerical
@pytest.mark.parametrize("name", ["clip", "vit"])
def test_positions_are_interpolated_to_another_resolution(name):
    this = loaded(name)
    backbone = parity.read(this.case.backbone, (this.case.mapping,), this.tensors, size=48)
    image = parity.random_image(48)
    theirs = this.module(parity.as_torch(image), interpolate_pos_encoding=True).last_hidden_state
    parity.assert_close(backbone(image), theirs, 1e-4)


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("clip_vit_b32", CLIPVisionConfig()),
        ("clip_vit_b16", CLIPVisionConfig(patch_size=16)),
        ("clip_vit_l14", CLIPVisionConfig(**_LARGE, intermediate_size=4096, patch_size=14)),
        ("vit_s16", ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)),
        ("vit_b16", ViTConfig()),
        ("vit_l16", ViTConfig(**_LARGE, intermediate_size=4096)),
        ("mae_b16", ViTMAEConfig()),
    ],
)
def test_published_sizes(name, published):
    make = {
        CLIPVisionConfig: CLIPVisionModel,
        ViTConfig: partial(ViTModel, add_pooling_layer=False),
        ViTMAEConfig: ViTMAEModel,
    }[type(published)]
    with torch.device("meta"):
        theirs = make(published).named_parameters()
        count = sum(p.numel() for n, p in theirs if not n.startswith("post_layernorm"))
    backbone = VISION_ENCODERS[name].backbone()
    assert sum(parity.parameters(backbone).values()) == count
    assert backbone.heads == published.num_attention_heads
    assert backbone.epsilon == published.layer_norm_eps
    assert VISION_ENCODERS[name].multiple == backbone.patch == published.patch_size


def test_the_last_two_blocks_are_what_the_reference_trains():
    backbone = VISION_ENCODERS["clip_vit_b32"].backbone()
    assert backbone.blocks == ("stem", *(f"block_{n}" for n in range(12)))
    blocks = resolve_trainable("last:2", backbone.blocks)
    assert blocks == ("block_10", "block_11")
    sizes = parity.parameters(backbone)
    assert sum(sizes[name] for name in blocks) == 14_175_744  # 14.18 M
    of_vit = VISION_ENCODERS["vit_b16"].backbone()
    assert resolve_trainable("last:2", of_vit.blocks) == ("block_10", "block_11", "norm")


@pytest.mark.numerical
def test_the_sine_cosine_table_is_that_of_mae():
    ours = sine_cosine(jax.random.key(0), (17, 32), jnp.float32)
    parity.assert_close(ours, get_2d_sincos_pos_embed(32, 4, cls_token=True), 1e-6)
    backbone = VisionTransformer(
        width=32, depth=1, heads=4, patch=8, mlp=64, epsilon=1e-12, position_init=sine_cosine
    )
    variables = jax.jit(backbone.init)(jax.random.key(0), parity.random_image(32))
    np.testing.assert_array_equal(variables["params"]["stem"]["position"], ours)
