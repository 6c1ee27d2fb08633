"""BEiT against transformers' PyTorch one, through safetensors files."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import BeitConfig, BeitForImageClassification, BeitModel

from pixelrec_jax.items.vision.beit import HUGGINGFACE, SPECS, Beit
from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.layers import Context, DropPath
from pixelrec_jax.weights.files import write
from pixelrec_jax.weights.mapping import write_weights
from tests import double
from tests.items import parity

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "use_relative_position_bias": True,
    "drop_path_rate": 0.0,
}
BACKBONE = Beit(width=32, depth=3, heads=4, patch=8, mlp=64, drop_path=0.0)


def make(**changed) -> BeitModel:
    """A random model in evaluation."""
    return parity.randomise(BeitModel(BeitConfig(**{**SIZES, **changed})).eval())


@cache
def loaded() -> tuple[BeitModel, dict, parity.Backbone]:
    """A random model, its checkpoint and our backbone with these weights."""
    module = make()
    with TemporaryDirectory() as folder:
        tensors = parity.saved(module, Path(folder))
    return module, tensors, parity.Backbone(BACKBONE, (HUGGINGFACE,), tensors, size=32)


@pytest.mark.numerical
def test_every_block_equals_pytorch():
    module, _, backbone = loaded()
    image = parity.random_image(32)
    theirs = module(parity.as_torch(image), output_hidden_states=True)
    layers = backbone.layers(image)
    expected = (*theirs.hidden_states, theirs.pooler_output)
    for name, hidden in zip(BACKBONE.blocks, expected, strict=True):
        parity.assert_close(layers[name], hidden)
    parity.assert_close(backbone(image), theirs.pooler_output)


@pytest.mark.parametrize("pool", ["tokens", "cls"])
def test_other_pools_are_those_of_a_model_without_mean_pooling(pool):
    module, _, backbone = loaded()
    unpooled = make(use_mean_pooling=False)
    unpooled.load_state_dict({n.replace("pooler.", ""): x for n, x in module.state_dict().items()})
    image = parity.random_image(32)
    theirs = unpooled(parity.as_torch(image))
    expected = {"tokens": theirs.last_hidden_state, "cls": theirs.pooler_output}[pool]
    ours = jax.jit(BACKBONE.clone(pool=pool).apply)(backbone.variables, image)
    parity.assert_close(ours, expected)


@pytest.mark.numerical
def test_gradients_equal_pytorch(tmp_path):
    _, _, backbone = loaded()
    module = make().train()
    image = parity.random_image(32, seed=1)
    direction = np.random.default_rng(2).normal(size=(2, 32)).astype(np.float32)
    ours, _ = backbone.gradients(image, direction, train=True)
    parity.backward(module, lambda x: module(x).pooler_output, image, direction)
    theirs = backbone.read_gradients(parity.saved_gradients(module, tmp_path))
    parity.assert_trees_close(ours, theirs)


def test_weights_are_written_as_they_were_read(tmp_path):
    module, tensors, backbone = loaded()
    written = write_weights(backbone.variables["params"], HUGGINGFACE)
    assert written.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(written[name], value)
    module.config.save_pretrained(tmp_path)
    write(tmp_path / "model.safetensors", written)
    _, report = BeitModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("unexpected_keys", "missing_keys", "mismatched_keys"))


def test_a_whole_classifier_is_read(tmp_path):
    """With the head and with the buffers of transformers 4."""
    tensors = parity.saved(BeitForImageClassification(BeitConfig(**SIZES)), tmp_path)
    bias = "beit.encoder.layer.0.attention.attention.relative_position_bias"
    tensors[f"{bias}.relative_position_index"] = np.zeros((17, 17), np.int64)
    params = parity.Backbone(BACKBONE, (HUGGINGFACE,), tensors, size=32).variables["params"]
    for name, value in write_weights(params, HUGGINGFACE).items():
        np.testing.assert_array_equal(value, tensors[f"beit.{name}"])


def test_relative_positions_are_interpolated_to_another_resolution():
    module, tensors, _ = loaded()
    backbone = parity.Backbone(BACKBONE, (HUGGINGFACE,), tensors, size=48)
    larger = make(image_size=48)
    adapted = dict(module.state_dict())
    for name, table in adapted.items():
        if name.endswith("relative_position_bias_table"):
            grid = table[:-3].T.reshape(1, 4, 7, 7)
            grid = torch.nn.functional.interpolate(grid, size=(11, 11), mode="bicubic")
            adapted[name] = torch.cat([grid.reshape(4, 121).T, table[-3:]])
    larger.load_state_dict(adapted)
    image = parity.random_image(48)
    parity.assert_close(backbone(image), larger(parity.as_torch(image)).pooler_output)


def _items(backbone: parity.Backbone, item: np.ndarray, **changed) -> tuple[np.ndarray, dict]:
    """Outputs and intermediates of one image for each item in a training step."""
    image = np.repeat(parity.random_image(32, count=1), len(item), axis=0)
    module = BACKBONE.clone(**{"drop_path": 0.5, "train_mode_blocks": BACKBONE.blocks, **changed})
    run = jax.jit(
        lambda variables: module.apply(
            variables,
            image,
            Context(train=True, item=item),
            rngs={"dropout": jax.random.key(0)},
            capture_intermediates=lambda module, _: isinstance(module, DropPath),
            mutable=["intermediates"],
        )
    )
    output, captured = run(backbone.variables)
    return np.asarray(output), captured["intermediates"]


def test_an_item_loses_the_same_paths_wherever_it_lies():
    _, _, backbone = loaded()
    item = np.arange(200)
    output, captured = _items(backbone, item)
    order = np.random.default_rng(0).permutation(200)[:20]
    parity.assert_close(_items(backbone, item[order])[0], output[order])
    drops = {
        (n, m): np.asarray(captured[f"block_{n}"][f"drop_{m}"]["__call__"][0])
        for n in range(3)
        for m in (1, 2)
    }
    kept = {key: np.abs(x).max(axis=(1, 2)) > 0 for key, x in drops.items()}
    for (n, _), value in kept.items():  # 0, 0.25 and 0.5; four standard errors
        assert value.mean() == pytest.approx(1 - n / 4, abs=0.14)
    assert (kept[2, 1] != kept[2, 2]).any()  # the branches of a block are on their own


def test_evaluation_and_frozen_blocks_drop_nothing():
    module, _, backbone = loaded()
    image = parity.random_image(32, count=1)
    expected = module(parity.as_torch(image)).pooler_output.detach().repeat(20, 1)
    item = np.arange(20)
    parity.assert_close(
        _items(backbone, item, train_mode_blocks=("stem", "block_0", "norm"))[0], expected
    )
    assert np.abs(_items(backbone, item)[0] - expected.numpy()).max() > 0.01
    dropping = BACKBONE.clone(drop_path=0.5, train_mode_blocks=BACKBONE.blocks)
    parity.assert_close(jax.jit(dropping.apply)(backbone.variables, image), expected[:1])


@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
def test_recomputing_activations_changes_no_gradient():
    _, _, backbone = loaded()
    image = parity.random_image(32, count=4)
    kept, recomputed = (
        backbone.in_float64(remat=remat, drop_path=0.5).gradients(image, 1.0, train=True)[0]
        for remat in (False, True)
    )
    double.assert_close(recomputed, kept)


def test_bfloat16_computes_beside_float32_parameters():
    _, _, backbone = loaded()
    parity.assert_bfloat16_close(backbone, parity.random_image(32))


def test_the_published_size_and_what_the_reference_trains():
    vision = SPECS["beit_b16"]
    backbone = vision.backbone()
    rates = []

    def record(run, args, kwargs, context):
        if isinstance(context.module, DropPath):
            rates.append(context.module.rate)
        return run(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    with nn.intercept_methods(record):
        shapes = jax.eval_shape(backbone.init, jax.random.key(0), image)["params"]
    count = {n: sum(x.size for x in jax.tree.leaves(block)) for n, block in shapes.items()}
    published = BeitConfig(use_relative_position_bias=True)
    with torch.device("meta"):
        theirs = BeitModel(published)
    assert sum(count.values()) == sum(p.numel() for p in theirs.parameters())
    assert (backbone.epsilon, backbone.heads) == (
        published.layer_norm_eps,
        published.num_attention_heads,
    )
    assert (
        rates[::2]
        == rates[1::2]
        == pytest.approx([getattr(layer.drop_path, "drop_prob", 0) for layer in theirs.layers])
    )
    trainable_blocks = resolve_trainable("last:2", backbone.blocks)
    assert trainable_blocks == ("block_10", "block_11", "norm")
    assert sum(count[name] for name in trainable_blocks) == pytest.approx(14.20e6, abs=5e3)
