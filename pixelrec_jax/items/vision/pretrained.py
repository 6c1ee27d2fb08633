"""Published weights of a backbone, and its variables as one tree, as files hold them."""

from pathlib import Path

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights.files import config_beside, locate, read_tensors
from pixelrec_jax.weights.mapping import read_weights


def merge_collections(variables: dict) -> dict:
    """Returns one tree of all Flax collections: parameters and running statistics."""
    return unflatten_dict(
        {path: leaf for tree in variables.values() for path, leaf in flatten_dict(tree).items()}
    )


def split_collections(tree: dict, like: dict) -> dict:
    """Returns a merged tree sorted into the collections of `like`; leaves may be missing."""
    flat = flatten_dict(tree)
    return {
        name: unflatten_dict({path: flat[path] for path in flatten_dict(leaves) if path in flat})
        for name, leaves in like.items()
    }


def read_backbone(item: ConfigDict, template: dict) -> dict:
    """Returns the weights that `item.weights` names, as variables like `template`.

    Args:
      item: `config.item` of a vision encoder.
      template: the backbone's variables, arrays or shapes.

    Raises:
      UserError: the file does not exist or does not fit the encoder.
    """
    vision = VISION_ENCODERS[item.name]
    if not vision.mappings:
        raise UserError(f"{item.name} has no published weights; set item.weights=''")
    path = locate(item.weights)
    if "activation" in vision.options:
        _check_activation(item, path)
    tree = read_weights(
        read_tensors(path),
        vision.mappings,
        merge_collections(template),
        origin=str(path),
        optional=vision.optional,
    )
    return split_collections(tree, template)


def _check_activation(item: ConfigDict, path: Path) -> None:
    """Raises `UserError` if config.json beside the weights says that they need another one."""
    config = config_beside(item.weights, path)
    vision = config.get("vision_config", config)
    needed = vision.get("hidden_act") if isinstance(vision, dict) else None
    if needed not in (None, item.activation):
        raise UserError(
            f"config.json beside {path} says hidden_act={str(needed)[:40]!r}, but item.activation="
            f"{item.activation!r}; set --config.item.activation to what it says, or give other "
            "weights"
        )


def backbone_variables(variables: dict) -> dict:
    """Returns the variables of the vision backbone, by Flax collection."""
    backbones = {
        name: tree.get("item_encoder", {}).get("backbone") for name, tree in variables.items()
    }
    return {name: backbone for name, backbone in backbones.items() if backbone}
