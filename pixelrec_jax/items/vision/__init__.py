"""Vision encoders: one file per architecture, which names its sizes."""

from pixelrec_jax.items.vision import beit, clip_resnet, efficientnet, mobilenet, resnet, swin, vit
from pixelrec_jax.items.vision.spec import Vision

VISION: dict[str, Vision] = {
    **vit.ENCODERS,
    **beit.ENCODERS,
    **swin.ENCODERS,
    **resnet.ENCODERS,
    **clip_resnet.ENCODERS,
    **mobilenet.ENCODERS,
    **efficientnet.ENCODERS,
}
