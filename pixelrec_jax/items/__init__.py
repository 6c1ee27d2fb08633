"""Item encoders: what an item is: its id, frozen features, semantic ids, or its image."""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from pixelrec_jax.errors import UserError, nearest
from pixelrec_jax.freeze import trainable_blocks
from pixelrec_jax.items.features import FORMS, SemanticIds
from pixelrec_jax.items.id import IdEncoder
from pixelrec_jax.items.pixel import NORMALISATIONS, PixelEncoder
from pixelrec_jax.items.vision import VISION

FEATURES = ("features", "id+features", "semantic_ids")
ITEM_ENCODERS = ("id", *FEATURES, *VISION)

# An item encoder maps Items with leading axis M to vectors float32[M, E].


# What every vision encoder's config has; further keys are options of its trunk.
_COMMON = (
    "name",
    "image_size",
    "weights",
    "trainable",
    "train_frozen",
    "pool",
    "dnn_layers",
    "normalisation",
    "remat",
    "dtype",
)


def uses_pixels(item: ConfigDict) -> bool:
    """Whether this item encoder looks at images."""
    return item.name in VISION


def uses_features(item: ConfigDict) -> bool:
    """Whether this item encoder reads a frozen matrix."""
    return item.name in FEATURES


def build_item_encoder(
    item: ConfigDict, *, num_items: int, has_mask: bool, width: int
) -> nn.Module:
    """Builds the item encoder that `config.item` describes, for D = `width`.

    `has_mask` adds the mask as item N = `num_items`.

    Raises:
      UserError: an unknown name or choice, or an image size that the encoder cannot divide.
    """
    if item.name == "id":
        return IdEncoder(
            num_items=num_items + has_mask, width=width, init=item.init, init_std=item.init_std
        )
    mask_item = num_items if has_mask else None
    if item.name == "semantic_ids":
        return SemanticIds(item.codebook_size, mask_item, width, item.init)
    if item.name in FEATURES:
        if item.form not in FORMS:
            raise UserError(f"unknown item.form {item.form!r}{nearest(item.form, FORMS)}")
        encoder, has_ids = FORMS[item.form], item.name == "id+features"
        if encoder.ids_needed and not has_ids:
            raise UserError(f"item.form={item.form!r} needs item=id+features")
        return encoder(
            num_items=num_items + has_mask,
            has_ids=has_ids,
            mask_item=mask_item,
            width=width,
            dnn_layers=tuple(item.dnn_layers),
            init=item.init,
        )
    if item.name not in VISION:
        raise UserError(f"unknown item encoder {item.name!r}{nearest(item.name, ITEM_ENCODERS)}")
    vision = VISION[item.name]
    options = {key: value for key, value in item.items() if key not in _COMMON}
    missing = [key for key in _COMMON if key not in item]
    unknown = [key for key in options if key not in vision.trunk.func.__dataclass_fields__]
    if missing or unknown:
        problems = [f"lacks item.{key}" for key in missing]
        problems += [f"has item.{key}, which {item.name} does not know" for key in unknown]
        raise UserError(
            f"the config {', '.join(problems)}; it may come from another version: make it anew "
            "from configs/pixelrec.py, in a new workdir"
        )
    if item.image_size <= 0 or item.image_size % vision.multiple:
        possible = max(1, round(item.image_size / vision.multiple)) * vision.multiple
        raise UserError(
            f"item.image_size={item.image_size} is not a multiple of {vision.multiple} pixels, "
            f"which {item.name} needs; try {possible}"
        )
    if item.pool not in vision.pools:
        raise UserError(f"item.pool={item.pool!r}: {item.name} offers {', '.join(vision.pools)}")
    if item.normalisation not in ("checkpoint", *NORMALISATIONS):
        known = ("checkpoint", *NORMALISATIONS)
        raise UserError(f"item.normalisation={item.normalisation!r}; use {', '.join(known)}")
    dtype = jnp.dtype(item.dtype)
    trunk = vision.trunk(pool=item.pool, remat=item.remat, dtype=dtype, **options)
    tuned = trainable_blocks(item.trainable, trunk.blocks)
    return PixelEncoder(
        trunk=trunk.clone(live=trunk.blocks if item.train_frozen else tuned),
        tuned=tuned,
        mask_item=mask_item,
        width=width,
        dnn_layers=tuple(item.dnn_layers),
        head_init=vision.head_init,
        normalisation=vision.normalisation
        if item.normalisation == "checkpoint"
        else item.normalisation,
        dtype=dtype,
    )
