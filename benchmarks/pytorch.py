"""The same encoders in PyTorch, to compare speeds within one run.

Needs requirements-test.txt. Weights are random, in full size; nothing is fetched.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks import torchvision_import  # noqa: F401  (lets torchvision import beside a PyTorch for CPU)


def _transformers(name: str, **options: Any) -> torch.nn.Module:
    import transformers

    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}Model")(config)


def _clip_resnet(**options: Any) -> torch.nn.Module:
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet(**options)


def _torchvision(name: str) -> torch.nn.Module:
    import torchvision

    return getattr(torchvision.models, name)()


def _timm(name: str) -> torch.nn.Module:
    import timm

    return timm.create_model(name)


_SMALL = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6}
_BASE = {"hidden_size": 768, "intermediate_size": 3072}
_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
_clip = partial(_transformers, "CLIPVision")
_vit = partial(_transformers, "ViT")
_swin_b = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "clip_vit_b32": partial(_clip, **_BASE, patch_size=32),
    "clip_vit_b16": partial(_clip, **_BASE, patch_size=16),
    "clip_vit_l14": partial(_clip, **_LARGE, patch_size=14),
    "vit_s16": partial(_vit, **_SMALL),
    "vit_b16": partial(_vit, **_BASE),
    "vit_l16": partial(_vit, **_LARGE),
    "mae_b16": partial(_transformers, "ViTMAE", mask_ratio=0.0),
    "beit_b16": partial(_transformers, "Beit", use_relative_position_bias=True),
    "swin_t": partial(_transformers, "Swin"),
    "swin_b": partial(_transformers, "Swin", **_swin_b),
    "resnet18": partial(_torchvision, "resnet18"),
    "resnet34": partial(_torchvision, "resnet34"),
    "resnet50": partial(_torchvision, "resnet50"),
    "clip_rn50": partial(
        _clip_resnet, layers=(3, 4, 6, 3), output_dim=1024, heads=32, image_size=224, width=64
    ),
    "clip_rn50x4": partial(
        _clip_resnet, layers=(4, 6, 10, 6), output_dim=640, heads=40, image_size=288, width=80
    ),
    "clip_rn50x16": partial(
        _clip_resnet, layers=(6, 8, 18, 8), output_dim=768, heads=48, image_size=384, width=96
    ),
    "clip_rn50x64": partial(
        _clip_resnet, layers=(3, 15, 36, 10), output_dim=1024, heads=64, image_size=448, width=128
    ),
    "mobilenet_v2": partial(_torchvision, "mobilenet_v2"),
    "efficientnet_lite0": partial(_timm, "tf_efficientnet_lite0"),
}


def forward(name: str, *, batch: int, size: int) -> Callable[[], None]:
    """Returns a forward pass in evaluation, with images channels last, which is faster on CPU."""
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    convolutional = not hasattr(module, "config")  # transformers' models are the others
    image = torch.randn(batch, 3, size, size)
    if convolutional:
        image = image.to(memory_format=torch.channels_last)
        module = module.to(memory_format=torch.channels_last)

    def call() -> None:
        with torch.inference_mode():
            module(image)

    return call
