"""Vision transformers against transformers' and open_clip's PyTorch ones, through their files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
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
)
from pixelrec_jax.weights.files import write
from pixelrec_jax.weights.mapping import WeightMapping, read_weights, write_weights
from tests import double
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
    backbone: VisionTransformer
    mapping: WeightMapping
    blocks: tuple[str, ...]  # PyTorch's modules whose outputs are those of our blocks
    forward: Callable = lambda module, image: module(image)

    @property
    def hub(self) -> bool:
        """Whether it is a model of transformers, whose files differ from its state dict."""
        return self.mapping.name == "huggingface"


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
def loaded(name: str) -> tuple[Family, torch.nn.Module, dict, parity.Backbone]:
    """A family, its random model, the model's checkpoint and our backbone with these weights."""
    family = FAMILIES[name]
    module = parity.randomise(family.make().eval())
    with TemporaryDirectory() as folder:
        tensors = parity.saved(module, Path(folder)) if family.hub else parity.state_dict(module)
    return (
        family,
        module,
        tensors,
        parity.Backbone(family.backbone, (family.mapping,), tensors, size=32),
    )


def hidden_states(family: Family, module: torch.nn.Module, image: torch.Tensor) -> list:
    """The outputs of the model's blocks."""
    states = []
    hooks = [
        module.get_submodule(block).register_forward_hook(
            lambda _module, _inputs, y: states.append(y[0] if isinstance(y, tuple) else y)
        )
        for block in family.blocks
    ]
    family.forward(module, image)
    for hook in hooks:
        hook.remove()
    return states


@pytest.mark.numerical
@pytest.mark.parametrize("name", FAMILIES)
def test_every_block_equals_pytorch(name):
    family, module, _, backbone = loaded(name)
    image = parity.random_image(32)
    theirs = hidden_states(family, module, parity.as_torch(image))
    layers = backbone.layers(image)
    assert tuple(layers) == family.backbone.blocks
    for layer, hidden in zip(layers.values(), theirs, strict=True):
        parity.assert_close(layer, hidden)
    parity.assert_close(backbone(image), theirs[-1])


@pytest.mark.parametrize("name", ["clip", "vit", "mae"])
def test_tokens_are_the_last_hidden_state(name):
    family, module, _, backbone = loaded(name)
    image = parity.random_image(32)
    theirs = family.forward(module, parity.as_torch(image)).last_hidden_state
    parity.assert_close(backbone(image), theirs)
    for pool, pooled in {"cls": theirs[:, 0], "mean": theirs[:, 1:].mean(1)}.items():
        ours = jax.jit(family.backbone.clone(pool=pool).apply)(backbone.variables, image)
        parity.assert_close(ours, pooled)


@pytest.mark.numerical
@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_equal_pytorch(name, tmp_path):
    family, _, _, backbone = loaded(name)
    module = parity.randomise(family.make().eval())  # its gradients are written over its weights
    module.requires_grad_(True)  # MAE's position embedding is a parameter here
    image = parity.random_image(32, seed=1)
    direction = np.random.default_rng(2).normal(size=(2, 17, 32)).astype(np.float32)
    ours, _ = backbone.gradients(image, direction, train=True)
    parity.backward(module, lambda x: hidden_states(family, module, x)[-1], image, direction)
    theirs = parity.saved_gradients(module, tmp_path) if family.hub else parity.gradients(module)
    parity.assert_trees_close(ours, backbone.read_gradients(theirs))


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_written_as_they_were_read(name, tmp_path):
    family, module, tensors, backbone = loaded(name)
    written = write_weights(backbone.variables["params"], family.mapping)
    prefix = family.mapping.written_prefix
    used = {prefix + key: x for key, x in tensors.items() if not family.mapping.ignores(key)}
    assert written.keys() == used.keys()
    for key, tensor in used.items():
        np.testing.assert_array_equal(written[key], tensor)
    if family.hub:
        module.config.save_pretrained(tmp_path)
        write(tmp_path / "model.safetensors", written)
        other, report = type(module).from_pretrained(tmp_path, output_loading_info=True)
        assert not report["unexpected_keys"]
        image = parity.random_image(32)
        states = (hidden_states(family, x, parity.as_torch(image))[-1] for x in (module, other))
        assert torch.equal(*states)
    else:
        report = module.load_state_dict(
            {key: torch.from_numpy(x) for key, x in written.items()}, strict=False
        )
        assert not report.unexpected_keys


@pytest.mark.parametrize(
    ("make", "backbone", "mapping", "extra"),
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
def test_a_whole_checkpoint_of_the_hub_is_read(make, backbone, mapping, extra, tmp_path):
    """With text tower, classifier or decoder, and with the prefix of the backbone."""
    tensors = parity.saved(make(), tmp_path)
    assert extra in tensors
    prefix = mapping.prefixes[0]
    assert any(name.startswith(prefix) for name in tensors)
    ours = parity.Backbone(backbone, (mapping,), tensors, size=32).variables["params"]
    for name, value in write_weights(ours, mapping).items():
        np.testing.assert_array_equal(value, tensors[prefix + name.removeprefix(prefix)])


def test_written_names_of_clip_fit_the_models_that_have_both_towers(tmp_path):
    """As the files of the hub and of OpenAI do."""
    _, _, _, backbone = loaded("clip")
    params = backbone.variables["params"]
    whole = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=SIZES, projection_dim=8))
    whole.config.save_pretrained(tmp_path)
    write(tmp_path / "model.safetensors", write_weights(params, CLIP_HUGGINGFACE))
    _, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    missing = {name for name in report["missing_keys"] if name.startswith("vision_model.")}
    assert not report["unexpected_keys"]
    assert missing == {f"vision_model.post_layernorm.{x}" for x in ("weight", "bias")}
    tensors = {n: torch.from_numpy(x) for n, x in write_weights(params, CLIP_OPENAI).items()}
    report = OPENAI().load_state_dict(tensors, strict=False)
    missing = {name for name in report.missing_keys if name.startswith("visual.")}
    assert not report.unexpected_keys
    assert missing == {"visual.proj", "visual.ln_post.weight", "visual.ln_post.bias"}


def test_the_port_of_a_clip_checkpoint_is_found():
    """Whichever of the two origins a file has."""
    for name in ("clip", "openai"):
        _, _, tensors, backbone = loaded(name)
        both = (CLIP_HUGGINGFACE, CLIP_OPENAI)
        tree = read_weights(tensors, both, backbone.variables["params"], origin="file")
        assert jax.tree.all(jax.tree.map(np.array_equal, tree, backbone.variables["params"]))


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_positions_are_interpolated_to_another_resolution(name):
    family, module, tensors, _ = loaded(name)
    backbone = parity.Backbone(family.backbone, (family.mapping,), tensors, size=48)
    image = parity.random_image(48)
    theirs = module(parity.as_torch(image), interpolate_pos_encoding=True).last_hidden_state
    parity.assert_close(backbone(image), theirs, 1e-4)


@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
def test_recomputing_activations_changes_no_gradient():
    _, _, _, backbone = loaded("vit")
    image = parity.random_image(32)
    kept, recomputed = (
        backbone.in_float64(remat=remat).gradients(image, 1.0, train=True)[0]
        for remat in (False, True)
    )
    double.assert_close(recomputed, kept)


@pytest.mark.parametrize("name", ["clip", "vit"])
def test_bfloat16_computes_beside_float32_parameters(name):
    _, _, _, backbone = loaded(name)
    parity.assert_bfloat16_close(backbone, parity.random_image(32))
