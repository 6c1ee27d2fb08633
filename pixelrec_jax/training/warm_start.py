"""Cross-platform transfer: a run starts from what another one learned (PixelRec section 5.3)."""

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from pixelrec_jax.items import id_table
from pixelrec_jax.recommender import Recommender
from pixelrec_jax.runs import run_folder
from pixelrec_jax.runs.checkpoint import best_variables
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError

# Settings of a section that say how it is trained or computed, not what its parameters mean.
_MAY_DIFFER = {
    "item": (
        "weights",
        "initializer",
        "path",
        "image_size",
        "trainable",
        "frozen_in_train_mode",
        "drop_path",
        "remat",
        "dtype",
    ),
    "user": ("dropout", "init_std", "dtype"),
}
_USERS = ("user_encoder", "table")  # a row for every user, who are others elsewhere


def read_source(config: ConfigDict, model: Recommender, template: dict) -> dict:
    """Reads the best checkpoint of the finished run that `config.warm_start.run` names.

    Args:
      config: of the run that starts.
      model: what it trains.
      template: its variables by Flax collection, arrays or shapes.

    Returns:
      Those variables that `config.warm_start.scope` takes from the other run, frozen ones and
      running statistics included.

    Raises:
      UserError: there is no finished run, it was one of another model, or nothing can be taken.
    """
    if id_table(model.item_encoder) is not None:
        raise UserError(
            f"warm_start.run cannot start item={config.item.name}: an id means nothing in another "
            "catalogue; use a vision encoder or features, or leave warm_start.run empty"
        )
    source = storage.path(config.warm_start.run)
    if not (source / "config.json").is_file():
        raise UserError(f"warm_start.run={source} is no folder of a run; give the --workdir of one")
    if not (source / "result.json").is_file():
        raise UserError(
            f"the run in warm_start.run={source} has not finished; finish it with "
            f"pixelrec train --workdir={source}"
        )
    there = run_folder.read_config(source)
    parts = ("item", "user") if config.warm_start.scope == "all" else ("item",)
    _check_settings(there, config, parts)
    _, variables = best_variables(source, there)
    given, wanted = _chosen(variables, parts), _chosen(template, parts)
    if not wanted:
        raise UserError(f"warm_start.run: item={config.item.name} has no parameters to start from")
    for path in sorted({*given, *wanted}):
        shapes = [tuple(x[path].shape) if path in x else "absent" for x in (given, wanted)]
        if shapes[0] != shapes[1]:
            raise UserError(
                f"warm_start.run={source}: {'/'.join(path[1:])} is {shapes[0]} there and "
                f"{shapes[1]} here; give this run the width and sizes of that one"
            )
    return unflatten_dict(given)


def _check_settings(there: ConfigDict, here: ConfigDict, parts: tuple[str, ...]) -> None:
    for part in parts:
        ours, theirs = (run_folder.to_json(config)[part] for config in (here, there))
        for key in ("name", *sorted({*ours, *theirs} - {"name", *_MAY_DIFFER[part]})):
            if ours.get(key) != theirs.get(key):
                raise UserError(
                    f"warm_start.run={here.warm_start.run} was trained with "
                    f"{part}.{key}={theirs.get(key)!r}, but {ours.get(key)!r} is given; "
                    "both must agree"
                )


def _chosen(variables: dict, parts: tuple[str, ...]) -> dict[tuple[str, ...], jax.Array]:
    """Returns the leaves of these parts by path, without the table of users."""
    modules = [f"{part}_encoder" for part in parts]
    flat = flatten_dict(variables)
    return {path: x for path, x in flat.items() if path[1] in modules and path[1:] != _USERS}
