"""Item encoders: what an item is. `item=id` or the name of any vision encoder."""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from pixelrec_jax.errors import UserError, nearest
from pixelrec_jax.items.id import IdEncoder
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.items.vision import VISION

ITEM_ENCODERS = ("id", *VISION)

# An item encoder maps Items (id [M], image [M, H, W, 3] or None) to vectors float32[M, D].


def uses_pixels(item: ConfigDict) -> bool:
    """Whether this item encoder looks at images."""
    return item.name in VISION


def build_item_encoder(item: ConfigDict, *, num_items: int, width: int) -> nn.Module:
    """Builds the item encoder that `config.item` describes, for D = `width`.

    Raises:
      UserError: unknown name, or an image size that the encoder cannot cut into patches.
    """
    if item.name == "id":
        return IdEncoder(num_items=num_items, width=width, init_std=item.init_std)
    if item.name not in VISION:
        raise UserError(f"unknown item encoder {item.name!r}{nearest(item.name, ITEM_ENCODERS)}")
    vision = VISION[item.name]
    if item.image_size <= 0 or item.image_size % vision.patch:
        possible = max(1, round(item.image_size / vision.patch)) * vision.patch
        raise UserError(
            f"item.image_size={item.image_size} is not a multiple of the {vision.patch} pixel "
            f"patches of {item.name}; try {possible}"
        )
    dtype = jnp.dtype(item.dtype)
    return PixelEncoder(
        trunk=vision.trunk(remat=item.remat, dtype=dtype),
        width=width,
        mean=tuple(item.mean),
        std=tuple(item.std),
        dtype=dtype,
    )
