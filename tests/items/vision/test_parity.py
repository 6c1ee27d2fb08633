"""Every vision architecture equals its PyTorch original, in evaluation and in training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.layers import Context
from pixelrec_jax.items.vision.pretrained import merge_collections
from pixelrec_jax.weights.files import write_tensors
from pixelrec_jax.weights.mapping import write_weights
from tests import double
from tests.items.vision import parity
from tests.items.vision.cases import ARCHITECTURES, CASES, CONVOLUTIONAL, loaded
from tests.tiny import TINY

# A tiny encoder for each kind of module that is recomputed; EfficientNet's are MobileNet's.
RECOMPUTED = ("vit_b16", "beit_b16", "swin_t", "resnet18", "resnet50", "clip_rn50", "mobilenet_v2")
each_case = pytest.mark.parametrize("name", CASES)
each_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def test_every_architecture_has_a_case():
    def kind(backbone):
        options = ("clip", "unit", "padding")  # by which architectures of one class differ
        return type(backbone), *(getattr(backbone, option, None) for option in options)

    published = {kind(vision.backbone()) for vision in VISION_ENCODERS.values()}
    assert published == {kind(case.backbone) for case in ARCHITECTURES.values()}


@pytest.mark.numerical
@each_case
def test_every_block_every_pool_and_the_output_equal_pytorch(name):
    this = loaded(name)
    image = parity.random_image(this.case.size)
    states, output = this.case.run(this.module, parity.as_torch(image))
    default = this.case.backbone.pool
    ours, layers = this.backbone.evaluate(image, default, *this.case.pools)
    assert tuple(layers) == this.case.backbone.blocks
    for layer, state in zip(layers.values(), map(parity.as_jax, states), strict=True):
        if (state.ndim, layer.ndim) == (3, 4):  # Swin's maps are rows of tokens in PyTorch
            layer = layer.reshape(len(layer), -1, layer.shape[-1])
        parity.assert_close(layer, state)
    parity.assert_close(ours[default], output)
    for pool, pooled in this.case.pools.items():
        parity.assert_close(ours[pool], pooled(states[-1]))


@pytest.mark.numerical
@each_architecture
def test_a_training_step_equals_pytorchs(name):
    """Gradients, running statistics and the output."""
    this = loaded(name)
    module, case = this.case.module().train(), this.case
    image = parity.random_image(case.train_size or case.size, count=4, seed=case.seed)
    with torch.no_grad():
        shape = case.run(this.module, parity.as_torch(image))[1].shape
    direction = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    ours, changed, output = this.backbone.train(image, direction)
    theirs = parity.backward(module, lambda x: case.run(module, x)[1], image, direction)
    parity.assert_close(output, theirs)
    after = parity.read(case.backbone, (case.mapping,), parity.checkpoint(module), size=case.size)
    parity.assert_trees_close(ours, this.backbone.read_gradients(parity.gradients(module)))
    if "batch_stats" in this.backbone.variables:
        parity.assert_trees_close(changed["batch_stats"], after.variables["batch_stats"])


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_only_blocks_in_train_mode_use_the_statistics_of_the_batch(name):
    this = loaded(name)
    stem, trained, after = this.case.backbone.blocks[:3]
    image = parity.random_image(this.case.size)

    @jax.jit
    def run(variables):
        backbone = this.case.backbone.clone(train_mode_blocks=(trained,))
        context = Context(train=True)
        apply = partial(backbone.apply, method="run", mutable="batch_stats")
        return apply(variables, image, 0, after, context)

    output, changed = run(this.backbone.variables)
    before, changed = (
        {block: jax.tree.leaves(tree[block]) for block in (stem, trained)}
        for tree in (this.backbone.variables["batch_stats"], changed["batch_stats"])
    )
    assert all(map(np.array_equal, changed[stem], before[stem]))
    assert not any(map(np.array_equal, changed[trained], before[trained]))
    evaluated = this.backbone.evaluate(image, this.case.backbone.pool, *this.case.pools)[1]
    assert np.abs(output - evaluated[trained]).max() > 1e-3 * np.abs(output).max()


@each_case
def test_weights_are_written_as_they_were_read(name, tmp_path):
    this = loaded(name)
    mapping = this.case.mapping
    written = write_weights(merge_collections(this.backbone.variables), mapping)
    prefix = mapping.written_prefix
    used = {prefix + key: x for key, x in this.tensors.items() if not mapping.ignores(key)}
    assert written.keys() == used.keys()
    for key, tensor in used.items():
        np.testing.assert_array_equal(written[key], tensor)
    # PyTorch reads them, and computes the same.
    if isinstance(this.module, PreTrainedModel):
        this.module.config.save_pretrained(tmp_path)
        write_tensors(tmp_path / "model.safetensors", written)
        model = type(this.module)
        other, report = model.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["unexpected_keys"]
        assert not report["mismatched_keys"]
        missing = report["missing_keys"]
    else:
        other = this.case.make().eval()
        state = {key.removeprefix(prefix): torch.from_numpy(x) for key, x in written.items()}
        report = other.load_state_dict(state, strict=False)
        assert not report.unexpected_keys
        missing = report.missing_keys
    assert all(map(mapping.ignores, missing)), missing
    image = parity.as_torch(parity.random_image(this.case.size))
    assert torch.equal(*(this.case.run(module, image)[1] for module in (this.module, other)))


@pytest.mark.numerical
@pytest.mark.parametrize("name", RECOMPUTED)
@pytest.mark.usefixtures("in_float64")
def test_recomputing_activations_changes_no_gradient(name):
    """It does not change which paths are dropped or the running statistics either."""
    backbone = TINY[name].backbone()
    image = parity.random_image(16)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), image)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 1, x.shape).astype(np.float32), shapes)
    dropping = {"drop_path": 0.5} if hasattr(backbone, "drop_path") else {}
    kept, recomputed = (
        parity.Backbone(backbone, (), variables).in_float64(remat=remat, **dropping)
        for remat in (False, True)
    )
    differs = ["remat" in x.training_program(image, 1.0) for x in (kept, recomputed)]
    assert differs == [False, True]
    for again, once in zip(recomputed.train(image, 1.0), kept.train(image, 1.0), strict=True):
        if jax.tree.leaves(once):  # there are no running statistics without batch norm
            double.assert_close(again, once)


@each_architecture
def test_bfloat16_computes_beside_float32_parameters(name):
    """It changes the output by a twentieth at most; gradients and statistics stay in float32."""
    this = loaded(name)
    image = parity.random_image(this.case.size)
    half = this.backbone(image, dtype=jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    default = this.case.backbone.pool
    exact = this.backbone.evaluate(image, default, *this.case.pools)[0][default]
    parity.assert_close(half.astype(jnp.float32), exact, 0.05)
    backbone = this.case.backbone.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(backbone.init, jax.random.key(0), image)
    step = parity.Backbone(backbone, (), shapes).train
    gradients, changed, output = jax.eval_shape(step, image, 1.0)
    assert output.dtype == jnp.bfloat16
    kept = jax.tree.leaves((shapes, gradients, changed))
    assert {x.dtype for x in kept} == {jnp.dtype("float32")}
