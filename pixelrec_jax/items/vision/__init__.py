"""Vision encoders: one file per architecture, which names its sizes."""

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
from pixelrec_jax.items.vision.spec import EncoderSpec

VISION_ENCODERS: dict[str, EncoderSpec] = {
    **clip_vit.SPECS,
    **vit.SPECS,
    **beit.SPECS,
    **swin.SPECS,
    **resnet.SPECS,
    **clip_resnet.SPECS,
    **mobilenet.SPECS,
    **efficientnet.SPECS,
}
