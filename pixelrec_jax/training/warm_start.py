"""Cross-platform transfer: a run starts from the weights of another (PixelRec section 5.3)."""

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from pixelrec_jax.recommender import Recommender
from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import best_variables
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError

# Settings of each section that do not change what its parameters mean: how it trains or computes.
_MAY_DIFFER = {
    "item": (
        "weights",
        "initializer",
        "path",
        "image_size",
        "trainable",
        "frozen_in_train_mode",
        "frozen_statistics",
        "drop_path",
        "remat",
        "dtype",
    ),
    "user": ("dropout", "init_std", "dtype"),
}
_USERS = ("user_encoder", "table")  # a row for each user; another dataset has other users


def read_source(config: ConfigDict, model: Recommender, template: dict) -> dict:
    """Returns variables from the best checkpoint of the run that `config.warm_start.run` names.

    Args:
      config: the config of the run that starts.
      model: the model that it trains.
      template: the variables of that model by Flax collection, as arrays or shapes.

    Returns:
      The variables that `config.warm_start.scope` takes from the other run, including frozen ones
      and running statistics.

    Raises:
      UserError: the folder does not hold a finished run, the run has another model, or the model
        has no parameters to start from.
    """
    if model.item_encoder.id_table is not None:
        raise UserError(
            f"warm_start.run cannot start item={config.item.name}: ids are not those of another "
            "catalogue; use a vision encoder or features, or leave warm_start.run empty"
        )
    source = storage.path(config.warm_start.run)
    if not (source / "config.json").is_file():
        raise UserError(f"warm_start.run={source} does not hold a run; give the --workdir of a run")
    if not (source / "result.json").is_file():
        raise UserError(
            f"the run in warm_start.run={source} has not finished; finish it with "
            f"pixelrec train --workdir={source}"
        )
    there = run_folder.read_config(source)
    sections = ("item", "user") if config.warm_start.scope == "all" else ("item",)
    _check_settings(there, config, sections)
    _, variables = best_variables(source, there)
    given, wanted = _chosen(variables, sections), _chosen(template, sections)
    if not wanted:
        raise UserError(
            f"warm_start.run={source}: item={config.item.name} has no parameters that a run could "
            "give; leave warm_start.run empty"
        )
    for path in sorted({*given, *wanted}):
        shapes = [tuple(x[path].shape) if path in x else "absent" for x in (given, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"warm_start.run={source}: {'/'.join(path[1:])} is {shapes[0]} there and "
                f"{shapes[1]} here; give this run the width and sizes of that one"
            )
    return unflatten_dict(given)


def _check_settings(there: ConfigDict, here: ConfigDict, sections: tuple[str, ...]) -> None:
    for section in sections:
        ours, theirs = (run_folder.to_json(config)[section] for config in (here, there))
        for key in ("name", *sorted({*ours, *theirs} - {"name", *_MAY_DIFFER[section]})):
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"warm_start.run={here.warm_start.run} was trained with "
                    f"{section}.{key}={theirs.get(key)!r}, but {ours.get(key)!r} is given; "
                    "both must agree"
                )


def _chosen(variables: dict, sections: tuple[str, ...]) -> dict[tuple[str, ...], jax.Array]:
    """Returns the leaves of the encoders of these sections by path, without the table of users."""
    modules = [f"{section}_encoder" for section in sections]
    flat = flatten_dict(variables)
    return {path: x for path, x in flat.items() if path[1] in modules and path[1:] != _USERS}
