"""Item encoders: an item is its id, frozen features, semantic ids or its image."""

import jax.numpy as jnp
from ml_collections import ConfigDict

from pixelrec_jax.data.mask_item import num_ids
from pixelrec_jax.items.encoder import ItemEncoder
from pixelrec_jax.items.features import FEATURE_HEADS, SemanticIds
from pixelrec_jax.items.id import TABLE_INITS, IdEncoder
from pixelrec_jax.items.pixel import NORMALISATIONS, PixelEncoder
from pixelrec_jax.items.projection import KERNEL_INITS
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.blocks import resolve_trainable
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.system.options import (
    DTYPE,
    Flag,
    Number,
    OneOf,
    Option,
    Text,
    Whole,
    Wholes,
    Words,
    check_options,
    check_present,
)

FEATURES = ("features", "id+features", "semantic_ids")
ITEM_ENCODERS = ("id", *FEATURES, *VISION_ENCODERS)

_NAME = Option("what an item is: an id, features, codes, or an image", Text())
_INITIALIZER = "how tables and dense layers start"
_PATH = Option(
    "file of features or codes, relative to the folder of the dataset", Text(), "nothing"
)
_DNN_LAYERS = Option(
    "widths of dense layers below the projection (Figure 10)", Wholes(may_be_empty=True)
)
_ID_OPTIONS = {
    "name": _NAME,
    "initializer": Option(_INITIALIZER, OneOf(*TABLE_INITS)),
    "init_std": Option("standard deviation of the initializer 'normal'", Number(least=0)),
}
_FEATURE_OPTIONS = {
    "name": _NAME,
    "path": _PATH,
    "feature_head": Option("how features become an item's vector", OneOf(*FEATURE_HEADS)),
    "dnn_layers": _DNN_LAYERS,
    "initializer": Option(_INITIALIZER, OneOf(*KERNEL_INITS)),
}
_CODE_OPTIONS = {
    "name": _NAME,
    "path": _PATH,
    "codebook_size": Option("how many codes there are at each position", Whole()),
    "initializer": Option(_INITIALIZER, OneOf(*KERNEL_INITS)),
}
# The keys of every vision encoder's config; its backbone declares further ones.
_PIXEL_OPTIONS = {
    "name": _NAME,
    "image_size": Option("width and height of an image in pixels", Whole()),
    "weights": Option(
        "file, folder, URL, package:NAME or owner/name[@revision] of the hub; '' is random", Text()
    ),
    "trainable": Option(
        "blocks that are trained: all, none, last:2 or names by commas",
        Words(("block_10", "block_11")),
    ),
    "frozen_in_train_mode": Option(
        "whether frozen blocks use batch statistics and drop paths, as in the reference", Flag()
    ),
    "pool": Option("how the tokens of an image become its vector", None),
    "dnn_layers": _DNN_LAYERS,
    "normalisation": Option(
        "mean and deviation of pixels: half is the reference's, checkpoint the weights' own",
        OneOf("checkpoint", *NORMALISATIONS),
    ),
    "remat": Option("whether the backward pass computes activations again, to save memory", Flag()),
    "dtype": DTYPE,
}


def item_options(name: str) -> dict[str, Option]:
    """Returns the options of a registered item encoder.

    Raises:
      UserError: no item encoder has this name.
    """
    if name == "id":
        return _ID_OPTIONS
    if name == "semantic_ids":
        return _CODE_OPTIONS
    if name in FEATURES:
        return _FEATURE_OPTIONS
    if name not in VISION_ENCODERS:
        raise UserError(f"unknown item encoder {name!r}{nearest(name, ITEM_ENCODERS)}")
    vision = VISION_ENCODERS[name]
    pool = Option(_PIXEL_OPTIONS["pool"].meaning, OneOf(*vision.pools))
    return {**_PIXEL_OPTIONS, "pool": pool, **vision.options}


def uses_pixels(item: ConfigDict) -> bool:
    """Returns whether this item encoder reads images."""
    return item.name in VISION_ENCODERS


def uses_features(item: ConfigDict) -> bool:
    """Returns whether this item encoder reads a frozen matrix."""
    return item.name in FEATURES


def build_item_encoder(
    item: ConfigDict, *, num_items: int, mask_item: int | None, width: int
) -> ItemEncoder:
    """Returns the item encoder that `config.item` describes.

    Args:
      item: `config.item`.
      num_items: N, padding included.
      mask_item: the id of the mask item, None if there is none.
      width: D.

    Raises:
      UserError: an unknown name or choice, options that do not fit each other, or an image size
        that the encoder cannot divide into patches.
    """
    check_options(flatten(item.to_dict(), "item."), flatten(item_options(item.name), "item."))
    ids = num_ids(num_items, mask_item)
    if item.name in VISION_ENCODERS:
        return _pixel_encoder(item, mask_item, width)
    if item.name == "semantic_ids":
        return SemanticIds(item.codebook_size, mask_item, width, item.initializer)
    if item.name in FEATURES:
        return _feature_encoder(item, ids, mask_item, width)
    return IdEncoder(ids, width, item.initializer, item.init_std)


def _feature_encoder(
    item: ConfigDict, num_items: int, mask_item: int | None, width: int
) -> ItemEncoder:
    encoder, has_ids = FEATURE_HEADS[item.feature_head], item.name == "id+features"
    if encoder.ids_needed and not has_ids:
        raise UserError(
            f"item.feature_head={item.feature_head!r} needs ids, but item={item.name} has none; "
            "use item=id+features"
        )
    if item.dnn_layers and item.feature_head != "dense":
        raise UserError(
            f"item.dnn_layers={tuple(item.dnn_layers)} needs item.feature_head='dense', not "
            f"{item.feature_head!r}; set item.dnn_layers=() or use the head 'dense'"
        )
    return encoder(
        num_items=num_items,
        has_ids=has_ids,
        mask_item=mask_item,
        width=width,
        dnn_layers=tuple(item.dnn_layers),
        weight_init=item.initializer,
    )


def _pixel_encoder(item: ConfigDict, mask_item: int | None, width: int) -> ItemEncoder:
    vision = VISION_ENCODERS[item.name]
    options = {key: value for key, value in item.items() if key not in _PIXEL_OPTIONS}
    check_present(flatten(item.to_dict(), "item."), flatten(_PIXEL_OPTIONS, "item."))
    if item.image_size % vision.multiple:
        possible = max(1, round(item.image_size / vision.multiple)) * vision.multiple
        raise UserError(
            f"item.image_size={item.image_size} is not a multiple of {vision.multiple} pixels, "
            f"which {item.name} needs; try {possible}"
        )
    dtype = jnp.dtype(item.dtype)
    backbone = vision.backbone(pool=item.pool, remat=item.remat, dtype=dtype, **options)
    if item.frozen_in_train_mode and item.get("frozen_statistics"):
        raise UserError(
            "item.frozen_in_train_mode=True gives frozen blocks the statistics of a batch, "
            "item.frozen_statistics=True takes them from all blocks; set one of them to False"
        )
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
