"""MobileNetV2 against torchvision's."""

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torchvision.models import MobileNetV2, mobilenet_v2

from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.layers import Context
from pixelrec_jax.items.vision.mobilenet import (
    SPECS,
    MobileNet,
    layer_by_layer,
    repeat,
    torchvision,
)
from pixelrec_jax.weights.mapping import write_weights
from pixelrec_jax.weights.partition import merge
from tests import double
from tests.items import parity

TABLE = [[1, 8, 1, 1], [3, 16, 2, 2], [2, 24, 1, 2]]  # expansion, width, layers, stride
BACKBONE = MobileNet(layer_by_layer([layer for row in TABLE for layer in repeat(*row)]))
PORT = torchvision(depth=4)


@pytest.fixture(scope="module")
def network():
    return parity.randomise(MobileNetV2(num_classes=5, inverted_residual_setting=TABLE).eval())


@pytest.fixture(scope="module")
def backbone(network):
    return parity.Backbone(BACKBONE, (PORT,), parity.state_dict(network), size=32)


@pytest.mark.numerical
def test_every_block_equals_pytorch(network, backbone):
    image = parity.random_image(32)
    layers = backbone.layers(image)
    assert tuple(layers) == BACKBONE.blocks
    hidden = parity.as_torch(image)
    for layer, module in zip(layers.values(), network.features, strict=True):
        hidden = module(hidden)
        parity.assert_close(layer, hidden.permute(0, 2, 3, 1))


@pytest.mark.parametrize("size", [32, 45])
def test_pooling_equals_pytorch_at_any_size(network, backbone, size):
    image = parity.random_image(size)
    parity.assert_close(backbone(image), network.features(parity.as_torch(image)).mean((2, 3)))


@pytest.mark.numerical
def test_gradients_and_running_statistics_of_training_equal_pytorch(backbone):
    network = parity.randomise(MobileNetV2(num_classes=5, inverted_residual_setting=TABLE)).train()
    # The gradient jumps at a relu6's kinks: here no input of one is within five roundings of them.
    image = parity.random_image(32, count=4, seed=17)
    direction = np.random.default_rng(2).normal(size=(4, 1280)).astype(np.float32)
    ours, changed = backbone.gradients(image, direction, train=True)
    parity.backward(network, lambda x: network.features(x).mean((2, 3)), image, direction)
    parity.assert_trees_close(ours, backbone.read_gradients(parity.gradients(network)))
    after = parity.Backbone(BACKBONE, (PORT,), parity.state_dict(network), size=32)
    parity.assert_trees_close(changed["batch_stats"], after.variables["batch_stats"])


def test_written_weights_are_those_that_were_read(network, backbone):
    tree = merge(backbone.variables["params"], backbone.variables["batch_stats"])
    tensors = write_weights(tree, PORT)
    source = parity.state_dict(network)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, source[name])
    unused = source.keys() - tensors.keys()
    assert all(n.startswith("classifier.") or n.endswith("num_batches_tracked") for n in unused)
    state = {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}
    assert not network.load_state_dict(state, strict=False).unexpected_keys


def test_only_live_blocks_change_their_statistics(backbone):
    image = parity.random_image(32)
    train_mode_blocks = BACKBONE.clone(train_mode_blocks=("block_4", "head"))
    apply = jax.jit(
        lambda v, x: train_mode_blocks.apply(v, x, Context(train=True), mutable="batch_stats")
    )
    before = flatten_dict(backbone.variables["batch_stats"])
    after = flatten_dict(apply(backbone.variables, image)[1]["batch_stats"])
    assert {path[0] for path in before if np.any(before[path] != after[path])} == set(
        train_mode_blocks.train_mode_blocks
    )


@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
def test_recomputation_changes_no_gradient(backbone):
    image = parity.random_image(32)
    direction = np.random.default_rng(0).normal(size=(2, 1280))
    kept, recomputed = (
        backbone.in_float64(remat=remat).gradients(image, direction, train=True)
        for remat in (False, True)
    )
    for once, again in zip(kept, recomputed, strict=True):  # the gradient, and the statistics
        double.assert_close(again, once)


def test_tokens_are_the_places_of_the_map(backbone):
    image = parity.random_image(32)
    tokens = jax.jit(BACKBONE.clone(pool="tokens").apply)(backbone.variables, image)
    assert tokens.shape == (2, 16, 1280)
    parity.assert_close(tokens.mean(1), backbone(image))


def test_bfloat16_computes_beside_float32_parameters(backbone):
    parity.assert_bfloat16_close(backbone, parity.random_image(32))


def test_sizes_are_the_published_ones():
    with torch.device("meta"):
        features = mobilenet_v2().features
    backbone = SPECS["mobilenet_v2"].backbone()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(lambda x: backbone.init(jax.random.key(0), x), image)["params"]
    assert backbone.blocks == ("stem", *(f"block_{n}" for n in range(1, 18)), "head")
    for block, module in zip(backbone.blocks, features, strict=True):
        ours = sum(x.size for x in jax.tree.leaves(params[block]))
        assert ours == sum(x.numel() for x in module.parameters())
    assert sum(x.size for x in jax.tree.leaves(params)) == 2_223_872
    assert resolve_trainable("last:2", backbone.blocks) == ("block_17", "head")
