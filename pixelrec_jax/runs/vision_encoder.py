"""Vision encoders without a recommender: published or trained weights, read at any layer."""

from dataclasses import dataclass
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from pixelrec_jax.data.types import Items
from pixelrec_jax.items import build_item_encoder, uses_pixels
from pixelrec_jax.items.features import mean_over_locations
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.pretrained import read_backbone
from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import best_variables
from pixelrec_jax.system.config import load_config
from pixelrec_jax.system.errors import UserError, nearest

VECTOR = "vector"  # the layer behind the projection: what a trained recommender ranks with


@dataclass(frozen=True)
class FrozenEncoder:
    """A vision encoder that is only applied.

    Attributes:
      item: its settings, as `config.item`.
      module: backbone and projection.
      variables: of the module, by Flax collection.
      layers: what `features` can return.
      origin: where the weights are from.
    """

    item: ConfigDict
    module: PixelEncoder
    variables: dict
    layers: tuple[str, ...]
    origin: str


def settings(config: str, name: str) -> ConfigDict:
    """Returns `config.item` of a vision encoder, as a config has it that is named without words.

    Raises:
      UserError: there is no such encoder, or no such file.
    """
    if name not in VISION_ENCODERS:
        raise UserError(f"--item: unknown vision encoder {name!r}{nearest(name, VISION_ENCODERS)}")
    return load_config(f"{config}:item={name}").unlock().item


def pretrained(item: ConfigDict) -> FrozenEncoder:
    """Returns an encoder with the weights that `item.weights` names, random ones for "".

    Raises:
      UserError: a setting or the weights do not fit the encoder.
    """
    module = _build(item, width=1)  # The projection is not trained, so not to be looked at.
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
        raise UserError(f"{workdir} trained item={config.item.name}, which has no vision encoder")
    step, variables = best_variables(workdir, config)
    parts = {name: tree.get("item_encoder") for name, tree in variables.items()}
    module = _build(config.item, width=config.width)
    return FrozenEncoder(
        config.item,
        module,
        {name: part for name, part in parts.items() if part},
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
    """Returns what a layer makes of images; what comes after the layer costs nothing under jit.

    Args:
      module: of a `FrozenEncoder`, as its `variables`, which are apart to be an argument of jit.
      variables: see above.
      items: with leading axis M.
      layer: a block of the backbone, or `VECTOR`; by default what the backbone returns.
      average: whether to return the mean over tokens or pixels.

    Returns:
      float32[M, C], of tokens [M, S, C] and of maps [M, H, W, C].
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
    module = build_item_encoder(item, num_items=1, has_mask=False, width=width)
    assert isinstance(module, PixelEncoder), f"{item.name} does not look at images"
    # Nothing is recomputed where there is no backward pass.
    return module.clone(backbone=module.backbone.clone(remat=False))
