"""Residual networks against torchvision's and transformers' PyTorch ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.items.vision.layers import Context
from pixelrec_jax.items.vision.resnet import (
    HUGGINGFACE,
    SPECS,
    TORCHVISION,
    Basic,
    Bottleneck,
    ResNet,
)
from pixelrec_jax.weights.mapping import write_weights
from pixelrec_jax.weights.partition import merge
from tests.items import parity

PORTS = (TORCHVISION, HUGGINGFACE)
LAYERS = ("layer1", "layer2", "layer3", "layer4")
# Our unit, torchvision's, and by how much it widens.
UNITS = {
    "basic": (Basic, torchvision.models.resnet.BasicBlock, 1),
    "bottleneck": (Bottleneck, torchvision.models.resnet.Bottleneck, 4),
}
UNUSED = ("num_batches_tracked", "fc.weight", "fc.bias", "classifier.1.weight", "classifier.1.bias")


def _of_torchvision(kind):
    ours, theirs, _ = UNITS[kind]
    module = torchvision.models.ResNet(theirs, [1, 2, 1, 1])
    module = parity.randomise(module, scale=0.05).eval()
    backbone = ResNet(ours, (1, 2, 1, 1), 64)
    return module, parity.Backbone(backbone, PORTS, parity.state_dict(module), size=32)


def _of_transformers(kind, *, size, make=ResNetModel):
    ours, _, expansion = UNITS[kind]
    # Three stages, as every batch norm on top amplifies the rounding of those below.
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8 * expansion * 2**n for n in range(3)],
        depths=[1, 2, 1],
        layer_type=kind,
    )
    module = parity.randomise(make(config)).eval()
    backbone = ResNet(ours, (1, 2, 1), 8)
    return module, parity.Backbone(backbone, PORTS, parity.state_dict(module), size=size)


def _map(x):
    """A map of PyTorch's as [M, H, W, C]."""
    return x.detach().permute(0, 2, 3, 1)


@pytest.mark.numerical
@pytest.mark.parametrize("kind", UNITS)
def test_every_block_equals_torchvisions(kind):
    module, backbone = _of_torchvision(kind)
    image = parity.random_image(32)
    layers = backbone.layers(image)
    x = module.maxpool(module.relu(module.bn1(module.conv1(parity.as_torch(image)))))
    parity.assert_close(layers["stem"], _map(x))
    for name in LAYERS:
        x = getattr(module, name)(x)
        parity.assert_close(layers[name], _map(x))
    parity.assert_close(backbone(image), module.avgpool(x).flatten(1))


@pytest.mark.numerical
@pytest.mark.parametrize("kind", UNITS)
def test_every_block_equals_transformers_for_an_odd_size_of_image(kind):
    module, backbone = _of_transformers(kind, size=45)
    image = parity.random_image(45)
    theirs = module(parity.as_torch(image), output_hidden_states=True)
    for layer, hidden in zip(backbone.layers(image).values(), theirs.hidden_states, strict=True):
        parity.assert_close(layer, _map(hidden))
    parity.assert_close(backbone(image), theirs.pooler_output.flatten(1))


@pytest.mark.numerical
@pytest.mark.parametrize("kind", UNITS)
def test_a_training_step_equals_pytorchs(kind):
    # With 32 pixels the last batch norm would see few values and amplify rounding, in PyTorch, too.
    module, backbone = _of_transformers(kind, size=64)
    # The gradient jumps at a relu's kink: here no input of one is within five roundings of zero.
    image = parity.random_image(64, count=4, seed=29)
    width = 32 * UNITS[kind][2]
    direction = np.random.default_rng(2).normal(size=(4, width)).astype(np.float32)
    parity.backward(module.train(), lambda x: module(x).pooler_output.flatten(1), image, direction)
    ours, changed = backbone.gradients(image, direction, train=True)
    parity.assert_trees_close(ours, backbone.read_gradients(parity.gradients(module)))
    after = parity.Backbone(backbone.backbone, PORTS, parity.state_dict(module), size=64)
    parity.assert_trees_close(changed["batch_stats"], after.variables["batch_stats"])


@pytest.mark.parametrize(
    ("make", "mapping"),
    [
        (_of_torchvision, TORCHVISION),
        (partial(_of_transformers, size=32, make=ResNetForImageClassification), HUGGINGFACE),
    ],
)
@pytest.mark.parametrize("kind", UNITS)
def test_a_classifiers_checkpoint_is_read_and_written_back(kind, make, mapping, tmp_path):
    module, backbone = make(kind)
    tensors = parity.state_dict(module)
    if mapping is HUGGINGFACE:
        tensors = parity.saved(module, tmp_path)
    tensors = {
        name.removeprefix("resnet."): tensor
        for name, tensor in tensors.items()
        if not name.endswith(UNUSED)
    }
    written = write_weights(merge(*backbone.variables.values()), mapping)
    assert written.keys() == tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, written, tensors)
    body = getattr(module, "resnet", module)
    written = {name: torch.from_numpy(tensor) for name, tensor in written.items()}
    keys = body.load_state_dict(written, strict=False)
    assert not keys.unexpected_keys
    assert all(name.endswith(UNUSED) for name in keys.missing_keys)


SMALL = ResNet(Basic, (2, 1), 4)


def _step(backbone, dtype=jnp.float32):
    """Output, gradients and new statistics of one step in train mode."""
    image = parity.random_image(16)
    variables = jax.jit(SMALL.init)(jax.random.key(0), image)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def gradients(params):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        output, changed = backbone.apply(
            state, image.astype(dtype), Context(train=True), mutable=["batch_stats"]
        )
        return jnp.square(output.astype(jnp.float32)).sum(), (output, changed["batch_stats"])

    grads, (output, changed) = gradients(variables["params"])
    return output, grads, changed, variables["batch_stats"]


@pytest.mark.numerical
def test_recomputation_changes_nothing():
    plain, recomputed = (
        _step(SMALL.clone(train_mode_blocks=SMALL.blocks, remat=remat)) for remat in (False, True)
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), plain, recomputed)


def test_only_live_blocks_use_the_statistics_of_the_batch():
    _, _, after, before = _step(SMALL.clone(train_mode_blocks=("layer2",)))
    for name in SMALL.blocks:
        equal = jax.tree.map(np.array_equal, after[name], before[name])
        assert any(jax.tree.leaves(equal)) == all(jax.tree.leaves(equal)) == (name != "layer2")


def test_bfloat16_computes_beside_float32_parameters():
    _, backbone = _of_transformers("basic", size=32)
    parity.assert_bfloat16_close(backbone, parity.random_image(32))


def test_bfloat16_keeps_gradients_and_statistics_in_float32():
    backbone = SMALL.clone(train_mode_blocks=SMALL.blocks, dtype=jnp.bfloat16)
    output, gradients, statistics, _ = jax.eval_shape(partial(_step, backbone, jnp.bfloat16))
    assert output.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves((gradients, statistics))} == {jnp.dtype("float32")}


def test_tokens_are_the_places_of_the_map():
    image = parity.random_image(64)
    variables = jax.jit(SMALL.init)(jax.random.key(0), image)
    tokens = jax.jit(SMALL.clone(pool="tokens").apply)(variables, image)
    assert tokens.shape == (2, 64, 8)
    mean = jax.jit(SMALL.apply)(variables, image)
    np.testing.assert_allclose(tokens.mean(axis=1), mean, atol=1e-5)


@pytest.mark.parametrize("name", SPECS)
def test_sizes_are_those_of_torchvision(name):
    backbone = SPECS[name].backbone()
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    params = jax.eval_shape(backbone.init, jax.random.key(0), image)["params"]
    with torch.device("meta"):
        module = getattr(torchvision.models, name)()

    def count(prefixes):
        return sum(p.numel() for n, p in module.named_parameters() if n.startswith(prefixes))

    def size(blocks):
        return sum(x.size for block in blocks for x in jax.tree.leaves(params[block]))

    assert size(["stem"]) == count(("conv1", "bn1"))
    for n in range(1, 5):
        assert resolve_trainable(f"last:{n}", backbone.blocks) == LAYERS[-n:]
        assert size(LAYERS[-n:]) == count(LAYERS[-n:])
