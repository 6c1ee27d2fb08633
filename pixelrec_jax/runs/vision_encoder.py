"""Frozen vision encoders without a recommender, with published or trained weights."""

from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.data.types import Items
from pixelrec_jax.items import build_item_encoder, uses_pixels
from pixelrec_jax.items.features import mean_over_locations
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.pretrained import read_backbone
from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import best_variables
from pixelrec_jax.system.errors import UserError, nearest

VECTOR = "vector"  # the layer after the projection: the item vector of a trained recommender


@dataclass(frozen=True)
class FrozenEncoder:
    """A vision encoder that is applied and not trained.

    Attributes:
      item: its settings, as `config.item`.
      module: backbone and projection.
      variables: the variables of the module by Flax collection.
      layers: the layers that `features` can return.
      origin: the source of the weights.
    """

    item: ConfigDict
    module: PixelEncoder
    variables: dict
    layers: tuple[str, ...]
    origin: str


def settings(config: str, name: str) -> ConfigDict:
    """Returns `config.item` of a vision encoder; `config` is the name of a config without words.

    Raises:
      UserError: the encoder is unknown, or the config's file does not exist.
    """
    if name not in VISION_ENCODERS:
        raise UserError(f"--item: unknown vision encoder {name!r}{nearest(name, VISION_ENCODERS)}")
    return load_config(f"{config}:item={name}").unlock().item


def pretrained(item: ConfigDict) -> FrozenEncoder:
    """Returns an encoder with the weights that `item.weights` names; for "" they are random.

    Raises:
      UserError: a setting or the weights do not fit the encoder.
    """
    module = _build(item, width=1)  # the projection is untrained and not used
    example = Items(
        id=jnp.ones(1, jnp.int32),
        image=jnp.zeros((1, item.image_size, item.image_size, 3), jnp.uint8),
    )
    variables = jax.jit(lambda: module.init(jax.random.key(0), example, train=False))()
    if item.weights:
        backbone = read_backbone(item, {name: tree["backbone"] for name, tree in variables.items()})
        variables = {name: {**variables[name], "backbone": tree} for name, tree in backbone.items()}
    return FrozenEncoder(item, module, variables, module.backbone.blocks, item.weights)


def trained(workdir: Path) -> FrozenEncoder:
    """Returns the encoder of a run, from its best checkpoint.

    Raises:
      UserError: the run has no vision encoder or no evaluated checkpoint.
    """
    config = run_folder.read_config(workdir)
    if not uses_pixels(config.item):
        raise UserError(
            f"{workdir} trained item={config.item.name}, which has no vision encoder; give the "
            "--workdir of a run with one"
        )
    step, variables = best_variables(workdir, config)
    encoder = {name: tree.get("item_encoder") for name, tree in variables.items()}
    module = _build(config.item, width=config.width)
    return FrozenEncoder(
        config.item,
        module,
        {name: tree for name, tree in encoder.items() if tree},
        (*module.backbone.blocks, VECTOR),
        f"{workdir}, step {step}",
    )


def features(
    module: PixelEncoder,
    variables: dict,
    items: Items,
    *,
    layer: str | None = None,
    average: bool = False,
) -> jax.Array:
    """Returns the output of a layer for images; under jit, later layers are not computed.

    Args:
      module: the module of a `FrozenEncoder`.
      variables: the variables of a `FrozenEncoder`; separate so that they can be arguments of jit.
      items: the items, with leading axis M.
      layer: a block of the backbone, or `VECTOR`; by default the output of the backbone.
      average: whether to return the mean over tokens or pixels.

    Returns:
      float32[M, C]; without `average` float32[M, S, C] of tokens or float32[M, H, W, C] of maps.
    """
    if layer == VECTOR:
        x = nn.apply(PixelEncoder.__call__, module)(variables, items, train=False)
    else:
        names = module.backbone.step_names
        stop = None if layer is None else names.index(layer) + 1
        x = nn.apply(PixelEncoder.run_backbone, module)(variables, items, stop)
    x = x.astype(jnp.float32)
    return mean_over_locations(x) if average else x


def _build(item: ConfigDict, width: int) -> PixelEncoder:
    module = build_item_encoder(item, num_items=1, mask_item=None, width=width)
    assert isinstance(module, PixelEncoder), f"{item.name} does not look at images"
    # Without a backward pass, rematerialisation saves nothing.
    return module.clone(backbone=module.backbone.clone(remat=False))
