"""Vision encoders: one file per architecture, one line in the registry."""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from pixelrec_jax.items.vision.vit import CLIP_RULES, VisionTransformer
from pixelrec_jax.weights import Rule


@dataclass(frozen=True)
class Vision:
    """How to build a trunk and where its published weights go.

    Attributes:
      trunk: makes the module from keyword arguments `remat` and `dtype`.
      patch: the image's sides must be multiples of it.
      rules: port of the published checkpoint, None for encoders that start from random weights.
    """

    trunk: Callable[..., nn.Module]
    patch: int
    rules: tuple[Rule, ...] | None = None


def _vit(
    *, width: int, depth: int, heads: int, patch: int, final_norm: bool = False
) -> Callable[..., nn.Module]:
    def trunk(*, remat: bool, dtype: jnp.dtype) -> VisionTransformer:
        return VisionTransformer(
            width=width,
            depth=depth,
            heads=heads,
            patch=patch,
            mlp=4 * width,
            final_norm=final_norm,
            remat=remat,
            dtype=dtype,
        )

    return trunk


VISION: dict[str, Vision] = {
    "clip_vit_b32": Vision(_vit(width=768, depth=12, heads=12, patch=32), 32, CLIP_RULES),
    # Small enough to learn from scratch on a laptop; the default of the toy dataset.
    "vit_toy": Vision(_vit(width=64, depth=2, heads=4, patch=8, final_norm=True), 8),
}
