"""What only CLIP's residual networks have: attention pooling, which may be left out."""

import jax
import numpy as np
import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.clip_resnet import OPENAI, SPECS
from pixelrec_jax.weights.mapping import read_weights
from pixelrec_jax.weights.partition import merge
from tests.items.vision import parity
from tests.items.vision.cases import loaded


@pytest.mark.numerical
@pytest.mark.parametrize("pool", ["mean", "tokens"])
def test_other_pools_leave_the_attention_of_a_checkpoint_out(pool):
    this = loaded("clip_resnet")
    other = this.case.backbone.clone(pool=pool)
    assert other.blocks == this.case.backbone.blocks[:-1]
    image = parity.random_image(64)
    shapes = jax.eval_shape(other.init, jax.random.key(0), image)
    template = merge(shapes["params"], shapes["batch_stats"])
    optional = SPECS["clip_rn50"].optional
    read_weights(this.tensors, (OPENAI,), template, origin="PyTorch", optional=optional)
    with torch.no_grad():
        x = parity.as_torch(image)
        for name in other.blocks:
            x = getattr(this.module, name)(x)
    theirs = x.flatten(2).mT
    ours = this.backbone.evaluate(image, "attention", "mean", "tokens")[0][pool]
    parity.assert_close(ours, theirs if pool == "tokens" else theirs.mean(1))


@pytest.mark.numerical
def test_positions_are_interpolated_to_another_size_of_image():
    this = loaded("clip_resnet")
    backbone = parity.read(this.case.backbone, (OPENAI,), this.tensors, size=3 * 32)
    position = this.tensors["attnpool.positional_embedding"]
    grid = torch.from_numpy(position[1:].reshape(1, 2, 2, -1)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (3, 3), mode="bicubic", align_corners=False)
    expected = np.concatenate([position[:1], grid[0].flatten(1).T])
    parity.assert_close(backbone.variables["params"]["attention_pool"]["position"], expected)


@pytest.mark.parametrize(
    ("name", "size", "trainable", "blocks", "millions"),
    [
        ("clip_rn50", 224, "last:2", ("layer3", "layer4"), 22.06),
        ("clip_rn50x4", 288, "last:1", ("layer4",), 44.3),
        ("clip_rn50x16", 384, "last:1", ("layer4",), 83.8),
        ("clip_rn50x64", 448, "last:1", ("layer4",), 184.7),
    ],
)
def test_sizes_are_the_references(name, size, trainable, blocks, millions):
    vision = SPECS[name]
    backbone = vision.backbone(pool=vision.pools[0])
    assert resolve_trainable(trainable, backbone.blocks) == blocks
    count = parity.parameters(backbone, size)
    digits = 2 if name == "clip_rn50" else 1
    assert round(sum(count[block] for block in blocks) / 1e6, digits) == millions
    config = open_clip.get_model_config(name.removeprefix("clip_").upper().replace("X", "x"))
    with torch.device("meta"):
        module = ModifiedResNet(
            config["vision_cfg"]["layers"],
            output_dim=config["embed_dim"],
            heads=config["vision_cfg"]["width"] * 32 // 64,
            image_size=config["vision_cfg"]["image_size"],
            width=config["vision_cfg"]["width"],
        )
    assert sum(count.values()) == sum(p.numel() for p in module.parameters())
