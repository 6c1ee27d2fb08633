"""Item encoders: what an item is: its id, frozen features, semantic ids, or its image."""

from collections.abc import Iterable

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from pixelrec_jax.items.features import FEATURE_HEADS, FeatureEncoder, SemanticIds
from pixelrec_jax.items.id import TABLE_INITS, IdEncoder
from pixelrec_jax.items.pixel import NORMALISATIONS, PixelEncoder
from pixelrec_jax.items.projection import KERNEL_INITS
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.system.errors import UserError, nearest

FEATURES = ("features", "id+features", "semantic_ids")
ITEM_ENCODERS = ("id", *FEATURES, *VISION_ENCODERS)

# An item encoder maps Items with leading axis M to vectors float32[M, E].


# What every vision encoder's config has; further keys are options of its backbone.
_COMMON = (
    "name",
    "image_size",
    "weights",
    "trainable",
    "frozen_in_train_mode",
    "pool",
    "dnn_layers",
    "normalisation",
    "remat",
    "dtype",
)


def uses_pixels(item: ConfigDict) -> bool:
    """Whether this item encoder looks at images."""
    return item.name in VISION_ENCODERS


def uses_features(item: ConfigDict) -> bool:
    """Whether this item encoder reads a frozen matrix."""
    return item.name in FEATURES


def id_table(encoder: nn.Module) -> tuple[str, ...] | None:
    """Returns the path of the table in an item encoder that has one row for every item, if any."""
    if isinstance(encoder, IdEncoder):
        return ("table",)
    if isinstance(encoder, FeatureEncoder) and encoder.has_ids:
        return ("ids", "table")
    return None


def build_item_encoder(
    item: ConfigDict, *, num_items: int, has_mask: bool, width: int
) -> nn.Module:
    """Builds the item encoder that `config.item` describes, for D = `width`.

    `has_mask` adds the mask as item N = `num_items`.

    Raises:
      UserError: an unknown name or choice, or an image size that the encoder cannot divide.
    """
    if item.name not in ITEM_ENCODERS:
        raise UserError(f"unknown item encoder {item.name!r}{nearest(item.name, ITEM_ENCODERS)}")
    mask_item = num_items if has_mask else None
    if item.name in VISION_ENCODERS:
        return _pixel_encoder(item, mask_item, width)
    if item.name == "semantic_ids":
        _check_choice(item, "initializer", KERNEL_INITS)
        return SemanticIds(item.codebook_size, mask_item, width, item.initializer)
    if item.name in FEATURES:
        return _feature_encoder(item, num_items + has_mask, mask_item, width)
    _check_choice(item, "initializer", TABLE_INITS)
    return IdEncoder(num_items + has_mask, width, item.initializer, item.init_std)


def _feature_encoder(
    item: ConfigDict, num_items: int, mask_item: int | None, width: int
) -> nn.Module:
    _check_choice(item, "feature_head", FEATURE_HEADS)
    _check_choice(item, "initializer", KERNEL_INITS)
    encoder, has_ids = FEATURE_HEADS[item.feature_head], item.name == "id+features"
    if encoder.ids_needed and not has_ids:
        raise UserError(f"item.feature_head={item.feature_head!r} needs item=id+features")
    if item.dnn_layers and item.feature_head != "dense":
        raise UserError(
            f"item.dnn_layers belong to item.feature_head='dense', given is {item.feature_head!r}"
        )
    return encoder(
        num_items=num_items,
        has_ids=has_ids,
        mask_item=mask_item,
        width=width,
        dnn_layers=tuple(item.dnn_layers),
        weight_init=item.initializer,
    )


def _pixel_encoder(item: ConfigDict, mask_item: int | None, width: int) -> nn.Module:
    vision = VISION_ENCODERS[item.name]
    options = {key: value for key, value in item.items() if key not in _COMMON}
    missing = [key for key in _COMMON if key not in item]
    unknown = [key for key in options if key not in vision.backbone.func.__dataclass_fields__]
    if missing or unknown:
        problems = [f"lacks item.{key}" for key in missing]
        problems += [f"has item.{key}, which {item.name} does not know" for key in unknown]
        raise UserError(
            f"the config {', '.join(problems)}; it may come from another version: make it anew "
            "with --config=pixelrec:words, in a new workdir"
        )
    if item.image_size <= 0 or item.image_size % vision.multiple:
        possible = max(1, round(item.image_size / vision.multiple)) * vision.multiple
        raise UserError(
            f"item.image_size={item.image_size} is not a multiple of {vision.multiple} pixels, "
            f"which {item.name} needs; try {possible}"
        )
    _check_choice(item, "pool", vision.pools)
    _check_choice(item, "normalisation", ("checkpoint", *NORMALISATIONS))
    dtype = jnp.dtype(item.dtype)
    backbone = vision.backbone(pool=item.pool, remat=item.remat, dtype=dtype, **options)
    trainable_blocks = resolve_trainable(item.trainable, backbone.blocks)
    return PixelEncoder(
        backbone=backbone.clone(
            train_mode_blocks=backbone.blocks if item.frozen_in_train_mode else trainable_blocks
        ),
        trainable_blocks=trainable_blocks,
        mask_item=mask_item,
        width=width,
        dnn_layers=tuple(item.dnn_layers),
        head_init=vision.head_init,
        normalisation=vision.normalisation
        if item.normalisation == "checkpoint"
        else item.normalisation,
        dtype=dtype,
    )


def _check_choice(item: ConfigDict, key: str, known: Iterable[str]) -> None:
    if item[key] not in known:
        raise UserError(f"item.{key}={item[key]!r}: item={item.name} offers {', '.join(known)}")
