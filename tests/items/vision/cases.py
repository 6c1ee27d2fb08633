"""A small PyTorch model of every architecture and origin of weights, and what it is here."""

from dataclasses import dataclass
from functools import cache, partial

import torch
import torchvision
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from timm.models.efficientnet import EfficientNet, decode_arch_def
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from pixelrec_jax.items.vision import (
    beit,
    clip_resnet,
    clip_vit,
    efficientnet,
    mobilenet,
    resnet,
    swin,
    vit,
)
from pixelrec_jax.items.vision.mobilenet import repeat
from tests.items.vision import parity
from tests.items.vision.case import MAP, TOKENS, Case, numbered

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_SIZES = {"width": 32, "depth": 2, "heads": 4, "patch": 8, "mlp": 64}
OPENAI = partial(
    CLIP,
    8,
    CLIPVisionCfg(layers=2, width=32, head_width=8, mlp_ratio=2, patch_size=8, image_size=32),
    CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1),
    quick_gelu=True,
)
_CLIP = clip_vit.ClipTransformer(**_SIZES)
_VIT = vit.VisionTransformer(**_SIZES, epsilon=1e-12)


def _unmasked(module: torch.nn.Module, image: torch.Tensor):
    """Returns MAE's result; it sorts patches by this noise, which keeps their order."""
    return module(image, noise=torch.arange(16.0).expand(len(image), 16))


def beit_config(**changed) -> BeitConfig:
    """Returns a config of BEiT with relative positions in every block and no stochastic depth."""
    options = {"use_relative_position_bias": True, "drop_path_rate": 0.0}
    return BeitConfig(**{**SIZES, **options, **changed})


# Maps of 8 and 4 tokens: the first is shifted, the last is one window.
SWIN_SIZES = {
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
    "patch_size": 2,
    "image_size": 16,
    "drop_path_rate": 0.0,
}
SWIN_B = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}

TRANSFORMERS = {
    "clip": Case(
        lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES)),
        _CLIP,
        clip_vit.HUGGINGFACE,
        numbered("pre_layrnorm", "encoder.layers.{}", 2),
        pools=TOKENS,
    ),
    "laion": Case(
        lambda: CLIPVisionModel(CLIPVisionConfig(**SIZES, hidden_act="gelu")),
        _CLIP.clone(activation="gelu"),
        clip_vit.HUGGINGFACE,
        numbered("pre_layrnorm", "encoder.layers.{}", 2),
        pools=TOKENS,
    ),
    "openai": Case(
        OPENAI,
        _CLIP,
        clip_vit.OPENAI,
        numbered("visual.ln_pre", "visual.transformer.resblocks.{}", 2),
        forward=lambda module, image: module.visual(image),
        pools=TOKENS,
    ),
    "vit": Case(
        lambda: ViTModel(ViTConfig(**SIZES)),
        _VIT,
        vit.VIT_HUGGINGFACE,
        numbered("embeddings", "layers.{}", 2, "layernorm"),
        pools=TOKENS,
    ),
    "mae": Case(
        lambda: ViTMAEModel(ViTMAEConfig(**SIZES, mask_ratio=0.0)),
        _VIT,
        vit.VIT_HUGGINGFACE,
        numbered("embeddings", "layers.{}", 2, "layernorm"),
        forward=_unmasked,
        pools=TOKENS,
    ),
    "beit": Case(
        lambda: BeitModel(beit_config()),
        beit.Beit(**_SIZES, drop_path=0.0),
        beit.HUGGINGFACE,
        numbered("embeddings", "layers.{}", 2, "pooler"),
    ),
    "swin": Case(
        lambda: SwinModel(SwinConfig(**SWIN_SIZES)),
        swin.Swin(width=8, depths=(2, 2), heads=(1, 2), window=4, patch=2, drop_path=0.0),
        swin.HUGGINGFACE,
        numbered("embeddings", "encoder.layers.{}", 2, "layernorm"),
        output=lambda result, _: result.pooler_output,
        pools=MAP,
        size=16,
    ),
}

# With these seeds no input of a relu is within five roundings of its kinks, where gradients jump.
UNITS = {"basic": (resnet.Basic, 1), "bottleneck": (resnet.Bottleneck, 4)}


def resnet_config(kind: str) -> ResNetConfig:
    """Returns a config of three stages: each batch norm amplifies the rounding of those below."""
    sizes = [8 * UNITS[kind][1] * 2**n for n in range(3)]
    return ResNetConfig(embedding_size=8, hidden_sizes=sizes, depths=[1, 2, 1], layer_type=kind)


def _resnet(kind: str) -> Case:
    return Case(
        lambda: ResNetModel(resnet_config(kind)),
        resnet.ResNet(UNITS[kind][0], (1, 2, 1), 8),
        resnet.HUGGINGFACE,
        numbered("embedder", "encoder.stages.{}", 3),
        output=lambda result, _: result.pooler_output.flatten(1),
        pools=MAP,
        size=45,
        # With 32 pixels the last batch norm would see few values and amplify rounding.
        train_size=64,
        seed=29,
    )


def _of_torchvision(kind: str) -> Case:
    theirs = torchvision.models.resnet
    unit = {"basic": theirs.BasicBlock, "bottleneck": theirs.Bottleneck}[kind]
    return Case(
        lambda: torchvision.models.ResNet(unit, [1, 2, 1, 1]),
        resnet.ResNet(UNITS[kind][0], (1, 2, 1, 1), 64),
        resnet.TORCHVISION,
        ("maxpool", "layer1", "layer2", "layer3", "layer4"),
        output=lambda _, last: last.mean((2, 3)),
        scale=0.05,
    )


_TABLE = [[1, 8, 1, 1], [3, 16, 2, 2]]  # expansion, width, layers, stride
BODY = efficientnet.by_stage([repeat(1, 8, 1, 1), repeat(3, 16, 2, 2, kernel=5)])
_STRINGS = [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k5_s2_e3_c16"]]
CONVOLUTIONAL = {
    **{f"resnet_{kind}": _resnet(kind) for kind in UNITS},
    "clip_resnet": Case(
        lambda: ModifiedResNet([1, 2, 1, 1], output_dim=12, heads=4, image_size=64, width=8),
        resnet.ResNet(
            clip_resnet.ClipBottleneck,
            (1, 2, 1, 1),
            8,
            stem=clip_resnet.ClipStem,
            attention=partial(clip_resnet.AttentionPool, heads=4, features=12),
            pool="attention",
        ),
        clip_resnet.OPENAI,
        ("avgpool", "layer1", "layer2", "layer3", "layer4", "attnpool"),
        size=64,
        # Attention to large features amplifies rounding: with twice as large ones PyTorch's own
        # gradients in float32 and in float64 differ by 1e-5.
        scale=0.05,
        seed=36,
    ),
    "mobilenet": Case(
        lambda: torchvision.models.MobileNetV2(num_classes=5, inverted_residual_setting=_TABLE),
        mobilenet.MobileNet(mobilenet.layer_by_layer([x for row in _TABLE for x in repeat(*row)])),
        mobilenet.torchvision(depth=3),
        tuple(f"features.{n}" for n in range(5)),
        output=lambda _, last: last.mean((2, 3)),
        pools=MAP,
        size=45,
        train_size=32,
        seed=179,
    ),
    "efficientnet": Case(
        lambda: EfficientNet(
            decode_arch_def(_STRINGS),
            num_classes=5,
            num_features=32,
            stem_size=8,
            fix_stem=True,
            pad_type="same",
            act_layer=torch.nn.ReLU6,
            norm_layer=partial(torch.nn.BatchNorm2d, eps=1e-3),
        ),
        efficientnet.LITE(BODY, stem=8, head=32),
        efficientnet.TIMM,
        numbered("bn1", "blocks.{}", 2, "bn2"),
        output=lambda _, last: last.mean((2, 3)),
        pools=MAP,
        size=45,
        train_size=32,
        seed=8,
    ),
}
ARCHITECTURES = TRANSFORMERS | CONVOLUTIONAL
# Torchvision's residual networks differ only in names.
CASES = ARCHITECTURES | {f"torchvision_{kind}": _of_torchvision(kind) for kind in UNITS}


@dataclass(frozen=True)
class Loaded:
    """A case with its model, the model's checkpoint and our backbone with the same weights."""

    case: Case
    module: torch.nn.Module
    tensors: dict
    backbone: parity.Backbone


@cache
def loaded(name: str) -> Loaded:
    """Returns the case of this name; tests must not change it."""
    case = CASES[name]
    module = case.module()
    tensors = parity.checkpoint(module)
    backbone = parity.read(case.backbone, (case.mapping,), tensors, size=case.size)
    return Loaded(case, module, tensors, backbone)
