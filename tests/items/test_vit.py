"""Vision transformers against transformers' and open_clip's PyTorch ones, through their files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.pos_embed import get_2d_sincos_pos_embed
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from pixelrec_jax.items.vision.vit import (
    CLIP_HUGGINGFACE,
    CLIP_OPENAI,
    VIT_HUGGINGFACE,
    VisionTransformer,
    sine_cosine,
)
from pixelrec_jax.weights.files import write
from pixelrec_jax.weights.port import Port, read_weights, write_weights
from tests.items import parity

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 8,
}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_intermediate_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}
OPENAI = partial(
    CLIP,
    8,
    CLIPVisionCfg(layers=2, width=32, head_width=8, mlp_ratio=2, patch_size=8, image_size=32),
    CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1),
    quick_gelu=True,
)
_small = partial(VisionTransformer, width=32, depth=2, heads=4, patch=8, mlp=64)
CLIP_TRUNK = _small(clip=True, epsilon=1e-5)
VIT_TRUNK = _small(epsilon=1e-12)


@dataclass(frozen=True)
class Family:
    """A PyTorch model and what it is here."""

    make: Callable[[], torch.nn.Module]
    trunk: VisionTransformer
    port: Port
    blocks: tuple[str, ...]  # PyTorch's modules whose outputs are those of our blocks
    forward: Callable = lambda module, image: module(image)

    @property
    def hub(self) -> bool:
        """Whether it is a model of transformers, whose files differ from its state dict."""
        return self.port.name == "huggingface"


def _unmasked(module: torch.nn.Module, image: torch.Tensor):
    """MAE shuffles the patches by this noise; sorted noise keeps their order."""
    return module(image, noise=torch.arange(16.0).expand(len(image), 16))


def _blocks(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.format(n) for n in range(2))


FAMILIES = {
    "clip": Family(
        lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES)),
        CLIP_TRUNK,
        CLIP_HUGGINGFACE,
        ("pre_layrnorm", *_blocks("encoder.layers.{}")),
    ),
    "openai": Family(
        OPENAI,
        CLIP_TRUNK,
        CLIP_OPENAI,
        ("visual.ln_pre", *_blocks("visual.transformer.resblocks.{}")),
        lambda module, image: module.visual(image),
    ),
    "vit": Family(
        lambda: ViTModel(ViTConfig(**SIZES)),
        VIT_TRUNK,
        VIT_HUGGINGFACE,
        ("embeddings", *_blocks("layers.{}"), "layernorm"),
    ),
    "mae": Family(
        lambda: ViTMAEModel(ViTMAEConfig(**SIZES, mask_ratio=0.0)),
        VIT_TRUNK,
        VIT_HUGGINGFACE,
        ("embeddings", *_blocks("layers.{}"), "layernorm"),
        _unmasked,
    ),
}


@cache
def loaded(name: str) -> tuple[Family, torch.nn.Module, dict, parity.Trunk]:
    """A family, its random model, the model's checkpoint and our trunk with these weights."""
    family = FAMILIES[name]
    module = parity.randomise(family.make().eval())
    with TemporaryDirectory() as folder:
        tensors = parity.saved(module, Path(folder)) if family.hub else parity.state_dict(module)
    return family, module, tensors, parity.Trunk(family.trunk, (family.port,), tensors, size=32)


def hidden_states(family: Family, module: torch.nn.Module, image: np.ndarray) -> list:
    """The outputs of the model's blocks."""
    states = []
    hooks = [
        module.get_submodule(block).register_forward_hook(
            lambda _module, _inputs, y: states.append(y[0] if isinstance(y, tuple) else y)
        )
        for block in family.blocks
    ]
    family.forward(module, parity.as_torch(image))
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_equals_pytorch(name):
    family, module, _, trunk = loaded(name)
    image = parity.random_image(32)
    theirs = hidden_states(family, module, image)
    layers = trunk.layers(image)
    assert tuple(layers) == family.trunk.blocks
    for layer, hidden in zip(layers.values(), theirs, strict=True):
        parity.assert_close(layer, hidden)
    parity.assert_close(trunk(image), theirs[-1])


@pytest.mark.parametrize("name", ["clip", "vit", "mae"])
def test_tokens_are_the_last_hidden_state(name):
    family, module, _, trunk = loaded(name)
    image = parity.random_image(32)
    theirs = family.forward(module, parity.as_torch(image)).last_hidden_state
    parity.assert_close(trunk(image), theirs)
    for pool, pooled in {"cls": theirs[:, 0], "mean": theirs[:, 1:].mean(1)}.items():
        ours = jax.jit(family.trunk.clone(pool=pool).apply)(trunk.variables, image)
        parity.assert_close(ours, pooled)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_pytorch(name, tmp_path):
    family, _, _, trunk = loaded(name)
    module = parity.randomise(family.make().eval())  # its gradients are written over its weights
    module.requires_grad_(True)  # MAE's position embedding is a parameter here
    image = parity.random_image(32, seed=1)
    direction = np.random.default_rng(2).normal(size=(2, 17, 32)).astype(np.float32)
    ours, _ = trunk.gradients(image, direction, train=True)
    tokens = hidden_states(family, module, image)[-1]
    (tokens * torch.from_numpy(direction)).sum().backward()
    theirs = parity.saved_gradients(module, tmp_path) if family.hub else parity.gradients(module)
    parity.assert_trees_close(ours, trunk.read_gradients(theirs))


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_written_as_they_were_read(name, tmp_path):
    family, module, tensors, trunk = loaded(name)
    written = write_weights(trunk.variables["params"], family.port)
    used = {key for key in tensors if not family.port.ignores(key)}
    assert set(written) == used
    for key in used:
        np.testing.assert_array_equal(written[key], tensors[key])
    if family.hub:
        module.config.save_pretrained(tmp_path)
        write(tmp_path / "model.safetensors", written)
        _, report = type(module).from_pretrained(tmp_path, output_loading_info=True)
        assert not report["unexpected_keys"]
    else:
        report = module.load_state_dict(
            {key: torch.from_numpy(x) for key, x in written.items()}, strict=False
        )
        assert not report.unexpected_keys


@pytest.mark.parametrize(
    ("make", "trunk", "port", "extra"),
    [
        (
            lambda: CLIPModel(CLIPConfig(text_config=TEXT, vision_config=SIZES, projection_dim=8)),
            CLIP_TRUNK,
            CLIP_HUGGINGFACE,
            "text_model.final_layer_norm.weight",
        ),
        (
            lambda: ViTForImageClassification(ViTConfig(**SIZES)),
            VIT_TRUNK,
            VIT_HUGGINGFACE,
            "classifier.weight",
        ),
        (
            lambda: ViTMAEForPreTraining(ViTMAEConfig(**SIZES, **DECODER)),
            VIT_TRUNK,
            VIT_HUGGINGFACE,
            "decoder.mask_token",
        ),
    ],
)
def test_a_whole_checkpoint_of_the_hub_is_read(make, trunk, port, extra, tmp_path):
    """With text tower, classifier or decoder, and with the prefix of the trunk."""
    tensors = parity.saved(make(), tmp_path)
    assert extra in tensors
    prefix = port.prefixes[0]
    assert any(name.startswith(prefix) for name in tensors)
    ours = parity.Trunk(trunk, (port,), tensors, size=32).variables["params"]
    written = write_weights(ours, port)
    for name, value in written.items():
        np.testing.assert_array_equal(value, tensors[prefix + name])


def test_the_port_of_a_clip_checkpoint_is_found():
    """Whichever of the two origins a file has."""
    for name in ("clip", "openai"):
        _, _, tensors, trunk = loaded(name)
        both = (CLIP_HUGGINGFACE, CLIP_OPENAI)
        tree = read_weights(tensors, both, trunk.variables["params"], origin="file")
        assert jax.tree.all(jax.tree.map(np.array_equal, tree, trunk.variables["params"]))


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_positions_are_interpolated_to_another_resolution(name):
    family, module, tensors, _ = loaded(name)
    trunk = parity.Trunk(family.trunk, (family.port,), tensors, size=48)
    image = parity.random_image(48)
    theirs = module(parity.as_torch(image), interpolate_pos_encoding=True).last_hidden_state
    parity.assert_close(trunk(image), theirs, 1e-4)


def test_the_sine_cosine_table_is_that_of_mae():
    ours = sine_cosine(jax.random.key(0), (17, 32), jnp.float32)
    parity.assert_close(ours, get_2d_sincos_pos_embed(32, 4, cls_token=True), 1e-6)
    trunk = VIT_TRUNK.clone(position_init=sine_cosine)
    variables = jax.jit(trunk.init)(jax.random.key(0), parity.random_image(32))
    np.testing.assert_array_equal(variables["params"]["stem"]["position"], ours)


def test_recomputing_activations_changes_no_gradient():
    family, _, tensors, trunk = loaded("vit")
    remat = parity.Trunk(family.trunk.clone(remat=True), (family.port,), tensors, size=32)
    image = parity.random_image(32)
    kept, _ = trunk.gradients(image, 1.0, train=True)
    recomputed, _ = remat.gradients(image, 1.0, train=True)
    parity.assert_trees_close(recomputed, kept, 1e-6)


@pytest.mark.parametrize("trunk", [CLIP_TRUNK, VIT_TRUNK])
def test_bfloat16_computes_beside_float32_parameters(trunk):
    make = trunk.clone(dtype=jnp.bfloat16).init_with_output
    tokens, variables = jax.eval_shape(make, jax.random.key(0), parity.random_image(32))
    assert tokens.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
