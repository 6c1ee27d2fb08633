"""Swin against transformers' PyTorch one, through safetensors files."""

from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import SwinConfig, SwinForImageClassification, SwinModel
from transformers.models.swin.modeling_swin import SwinRelativePositionBias

from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.layers import Context, DropPath
from pixelrec_jax.items.vision.swin import HUGGINGFACE, SPECS, Swin
from pixelrec_jax.weights.files import write
from pixelrec_jax.weights.mapping import write_weights
from tests import double
from tests.items import parity

# Maps of 16, 8 and 4 tokens: the first two are shifted, the last is one window.
SIZES = {
    "embed_dim": 8,
    "depths": [2, 2, 2],
    "num_heads": [1, 2, 4],
    "window_size": 4,
    "patch_size": 2,
    "image_size": 32,
    "drop_path_rate": 0.0,
}
BACKBONE = Swin(width=8, depths=(2, 2, 2), heads=(1, 2, 4), window=4, patch=2, drop_path=0.0)


def make(**changed) -> SwinModel:
    """A random model in evaluation."""
    return parity.randomise(SwinModel(SwinConfig(**{**SIZES, **changed})).eval())


@cache
def loaded() -> tuple[SwinModel, dict, parity.Backbone]:
    """A random model, its checkpoint and our backbone with these weights."""
    module = make()
    with TemporaryDirectory() as folder:
        tensors = parity.saved(module, Path(folder))
    return module, tensors, parity.Backbone(BACKBONE, (HUGGINGFACE,), tensors, size=32)


@pytest.mark.numerical
def test_every_block_equals_pytorch():
    module, _, backbone = loaded()
    image = parity.random_image(32)
    output = module(parity.as_torch(image), output_hidden_states=True)
    expected = (*output.hidden_states, output.last_hidden_state)
    layers = backbone.layers(image)
    for name, hidden in zip(BACKBONE.blocks, expected, strict=True):
        parity.assert_close(layers[name].reshape(hidden.shape), hidden)
    parity.assert_close(backbone(image), output.pooler_output)
    tokens = jax.jit(BACKBONE.clone(pool="tokens").apply)(backbone.variables, image)
    parity.assert_close(tokens, output.last_hidden_state)


def test_maps_that_the_window_does_not_divide_are_padded(tmp_path):
    """Maps of 14 and 7 tokens become 16 and 8, both shifted."""
    module = make(depths=[2, 2], num_heads=[1, 2])
    backbone = BACKBONE.clone(depths=(2, 2), heads=(1, 2))
    tensors = parity.saved(module, tmp_path)
    image = parity.random_image(28)
    ours = parity.Backbone(backbone, (HUGGINGFACE,), tensors, size=28)(image)
    parity.assert_close(ours, module(parity.as_torch(image)).pooler_output)


def test_a_map_smaller_than_the_window_is_one_window():
    """Transformers fails on maps of 2 tokens here, unless its table has the offsets of 2."""
    _, _, backbone = loaded()
    image = parity.random_image(16)
    module = make()
    for layer in module.encoder.layers[2].blocks:
        table = layer.attention.relative_position_bias.relative_position_bias_table
        inner = table.reshape(7, 7, 4)[2:5, 2:5].reshape(9, 4)
        layer.attention.relative_position_bias = SwinRelativePositionBias(4, (2, 2))
        layer.attention.relative_position_bias.relative_position_bias_table.data = inner
    parity.assert_close(backbone(image), module(parity.as_torch(image)).pooler_output)


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
    _, report = SwinModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("unexpected_keys", "missing_keys", "mismatched_keys"))


def test_a_whole_classifier_is_read(tmp_path):
    """With the head and with the buffers of older files."""
    tensors = parity.saved(SwinForImageClassification(SwinConfig(**SIZES)), tmp_path)
    layer = "swin.encoder.layers.0.blocks.1"
    tensors[f"{layer}.attention.self.relative_position_index"] = np.zeros((16, 16), np.int64)
    tensors[f"{layer}.attn_mask"] = np.zeros((4, 16, 16), np.float32)
    params = parity.Backbone(BACKBONE, (HUGGINGFACE,), tensors, size=32).variables["params"]
    for name, value in write_weights(params, HUGGINGFACE).items():
        np.testing.assert_array_equal(value, tensors[f"swin.{name}"])


def _items(
    backbone: parity.Backbone, item: np.ndarray, train_mode_blocks: tuple[str, ...]
) -> np.ndarray:
    """Vectors of one image for each item in a training step."""
    image = np.repeat(parity.random_image(16, count=1), len(item), axis=0)
    module = BACKBONE.clone(drop_path=0.5, train_mode_blocks=train_mode_blocks)
    context = Context(train=True, item=item)
    rngs = {"dropout": jax.random.key(0)}
    return np.asarray(jax.jit(partial(module.apply, rngs=rngs))(backbone.variables, image, context))


def test_an_item_loses_the_same_paths_wherever_it_lies():
    _, _, backbone = loaded()
    output = _items(backbone, np.arange(20), BACKBONE.blocks)
    parity.assert_close(_items(backbone, np.arange(20)[::-1], BACKBONE.blocks)[::-1], output)
    assert len(np.unique(output[:, 0].round(3))) > 5


def test_frozen_blocks_drop_nothing():
    _, _, backbone = loaded()
    expected = np.repeat(backbone(parity.random_image(16, count=1)), 4, axis=0)
    parity.assert_close(_items(backbone, np.arange(4), ("stem", "norm")), expected)


@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
def test_recomputing_activations_changes_no_gradient():
    _, _, backbone = loaded()
    image = parity.random_image(16, count=4)
    kept, recomputed = (
        backbone.in_float64(remat=remat, drop_path=0.5).gradients(image, 1.0, train=True)[0]
        for remat in (False, True)
    )
    double.assert_close(recomputed, kept)


def test_bfloat16_computes_beside_float32_parameters():
    _, _, backbone = loaded()
    parity.assert_bfloat16_close(backbone, parity.random_image(16))


BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}


@pytest.mark.parametrize(
    ("name", "published", "millions"),
    [("swin_t", SwinConfig(), 26.03), ("swin_b", SwinConfig(**BASE), 84.10)],
)
def test_published_sizes_and_what_the_reference_trains(name, published, millions):
    backbone = SPECS[name].backbone()
    rates = []

    def record(run, args, kwargs, context):
        if isinstance(context.module, DropPath):
            rates.append(context.module.rate)
        return run(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    with nn.intercept_methods(record):
        shapes = jax.eval_shape(backbone.init, jax.random.key(0), image)["params"]
    count = {n: sum(x.size for x in jax.tree.leaves(block)) for n, block in shapes.items()}
    with torch.device("meta"):
        theirs = SwinModel(published)
    assert sum(count.values()) == sum(p.numel() for p in theirs.parameters())
    assert backbone.heads == tuple(published.num_heads)
    layers = [layer for stage in theirs.encoder.layers for layer in stage.blocks]
    assert rates == pytest.approx([getattr(x.drop_path, "drop_prob", 0) for x in layers])
    trainable_blocks = resolve_trainable("last:2", backbone.blocks)
    assert trainable_blocks == ("stage_2", "stage_3", "norm")
    assert sum(count[block] for block in trainable_blocks) == pytest.approx(millions * 1e6, abs=5e3)
