"""CLIP's residual networks against open_clip's PyTorch ones."""

from functools import partial

import jax
import numpy as np
import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.clip_resnet import (
    OPENAI,
    SPECS,
    AttentionPool,
    ClipBottleneck,
    ClipStem,
)
from pixelrec_jax.items.vision.resnet import ResNet
from pixelrec_jax.weights.mapping import read_weights, write_weights
from pixelrec_jax.weights.partition import merge
from tests.items import parity

SIZE = 64
BACKBONE = ResNet(
    ClipBottleneck,
    (1, 2, 1, 1),
    8,
    stem=ClipStem,
    attention=partial(AttentionPool, heads=4, features=12),
    pool="attention",
)


@pytest.fixture
def pair():
    """Their module and our backbone with its weights."""
    module = ModifiedResNet([1, 2, 1, 1], output_dim=12, heads=4, image_size=SIZE, width=8)
    # Smaller than elsewhere: attention to large features amplifies rounding, so that with twice
    # as large ones PyTorch's gradients in float32 and in float64, too, differ by 1e-5.
    module = parity.randomise(module, scale=0.05).eval()
    return module, parity.Backbone(BACKBONE, (OPENAI,), parity.state_dict(module), size=SIZE)


@pytest.mark.numerical
def test_every_block_equals_pytorchs(pair):
    module, backbone = pair
    image = parity.random_image(SIZE)
    layers = backbone.layers(image)
    x = parity.as_torch(image)
    for name in BACKBONE.blocks[:-1]:
        x = getattr(module, name)(x)
        parity.assert_close(layers[name], x.detach().permute(0, 2, 3, 1))
    vector = module.attnpool(x)
    parity.assert_close(layers["attention_pool"], vector)
    parity.assert_close(backbone(image), vector)


@pytest.mark.numerical
def test_a_training_step_equals_pytorchs(pair):
    module, backbone = pair
    image = parity.random_image(SIZE, count=4, seed=1)
    direction = np.random.default_rng(2).normal(size=(4, 12)).astype(np.float32)
    parity.backward(module.train(), module, image, direction)
    ours, changed = backbone.gradients(image, direction, train=True)
    parity.assert_trees_close(ours, backbone.read_gradients(parity.gradients(module)))
    after = parity.Backbone(BACKBONE, (OPENAI,), parity.state_dict(module), size=SIZE)
    parity.assert_trees_close(changed["batch_stats"], after.variables["batch_stats"])


def _whole_clip():
    """A checkpoint with both towers, named as OpenAI's files are."""
    model = open_clip.CLIP(
        embed_dim=12,
        # The attention has width * 32 / 64 heads.
        vision_cfg={"image_size": SIZE, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
        text_cfg={"context_length": 4, "vocab_size": 9, "width": 8, "heads": 1, "layers": 1},
    )
    tensors = parity.state_dict(parity.randomise(model))
    # OpenAI's files hold these numbers as tensors.
    numbers = {"input_resolution": SIZE, "context_length": 4, "vocab_size": 9}
    return model, {**tensors, **{name: np.asarray(x) for name, x in numbers.items()}}


def test_a_whole_clip_checkpoint_is_read_and_its_tower_written_back():
    model, tensors = _whole_clip()
    backbone = parity.Backbone(BACKBONE, (OPENAI,), tensors, size=SIZE)
    image = parity.random_image(SIZE)
    parity.assert_close(backbone(image), model.eval().visual(parity.as_torch(image)))
    written = write_weights(merge(*backbone.variables.values()), OPENAI)
    tower = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("visual.") and not name.endswith("num_batches_tracked")
    }
    assert written.keys() == tower.keys()
    jax.tree.map(np.testing.assert_array_equal, written, tower)
    written = {name: torch.from_numpy(tensor) for name, tensor in written.items()}
    keys = model.load_state_dict(written, strict=False)
    assert not keys.unexpected_keys
    vision = [name for name in keys.missing_keys if name.startswith("visual.")]
    assert all(name.endswith("num_batches_tracked") for name in vision)


@pytest.mark.parametrize("pool", ["mean", "tokens"])
def test_other_pools_leave_the_attention_of_a_checkpoint_out(pair, pool):
    module, backbone = pair
    other = BACKBONE.clone(pool=pool)
    assert "attention_pool" not in other.blocks
    image = parity.random_image(SIZE)
    shapes = jax.eval_shape(other.init, jax.random.key(0), image)
    template = merge(shapes["params"], shapes["batch_stats"])
    optional = SPECS["clip_rn50"].optional
    read_weights(
        parity.state_dict(module), (OPENAI,), template, origin="PyTorch", optional=optional
    )
    ours = jax.jit(other.apply)(backbone.variables, image)
    x = parity.as_torch(image)
    for name in other.blocks:
        x = getattr(module, name)(x)
    theirs = x.flatten(2).mT
    parity.assert_close(ours, theirs if pool == "tokens" else theirs.mean(1))


def test_positions_are_interpolated_to_another_size_of_image(pair):
    module, _ = pair
    tensors = parity.state_dict(module)
    backbone = parity.Backbone(BACKBONE, (OPENAI,), tensors, size=3 * 32)
    position = tensors["attnpool.positional_embedding"]
    grid = torch.from_numpy(position[1:].reshape(1, 2, 2, -1)).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (3, 3), mode="bicubic", align_corners=False)
    expected = np.concatenate([position[:1], grid[0].flatten(1).T])
    parity.assert_close(backbone.variables["params"]["attention_pool"]["position"], expected)


def test_bfloat16_computes_beside_float32_parameters(pair):
    _, backbone = pair
    parity.assert_bfloat16_close(backbone, parity.random_image(SIZE))


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
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    params = jax.eval_shape(backbone.init, jax.random.key(0), image)["params"]
    trainable_blocks = sum(x.size for block in blocks for x in jax.tree.leaves(params[block]))
    assert round(trainable_blocks / 1e6, 2 if name == "clip_rn50" else 1) == millions
    config = open_clip.get_model_config(name.removeprefix("clip_").upper().replace("X", "x"))
    with torch.device("meta"):
        module = ModifiedResNet(
            config["vision_cfg"]["layers"],
            output_dim=config["embed_dim"],
            heads=config["vision_cfg"]["width"] * 32 // 64,
            image_size=config["vision_cfg"]["image_size"],
            width=config["vision_cfg"]["width"],
        )
    total = sum(p.numel() for p in module.parameters())
    assert sum(x.size for x in jax.tree.leaves(params)) == total
