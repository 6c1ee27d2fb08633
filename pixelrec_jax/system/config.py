"""Loading a config from its file, and checks that depend on the devices."""

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pixelrec_jax.system.errors import UserError, nearest_key, reason
from pixelrec_jax.system.storage import expand_user

SHIPPED = "pixelrec"  # the name of this package's own config, instead of a file
EXAMPLE = f"{SHIPPED}:user=sasrec,item=id,dataset=toy"
_SECTIONS = ("dataset", "task", "negatives", "user", "item", "loss", "optim", "train", "eval")
_SECTIONS += ("mesh",)


def load_config(name: str) -> ConfigDict:
    """Returns a config by its name.

    Args:
      name: "pixelrec:words" for the config of this package, as in "pixelrec:item=id", or
        "FILE.py:words"; words may be left out.

    Raises:
      UserError: the file does not exist or is not a config, or the config refuses the words.
    """
    if not name:
        raise UserError(f"--config is empty; give {SHIPPED}:words, as in {EXAMPLE}, or FILE.py")
    values = flags.FlagValues()
    file = expand_user(name).partition(":")[0]
    try:
        # Not named "config", as ml_collections would then read overrides from the command line.
        # A file that cannot be opened raises at `holder.value`.
        holder = config_flags.DEFINE_config_file("loaded", as_file(name), flag_values=values)
        values.mark_as_parsed()
        config = holder.value
        absent = [name for name in _SECTIONS if name not in config.to_dict()]
        why = f"it has no {', '.join(absent)}" if absent else ""
    except UserError:
        raise
    except OSError:
        raise UserError(
            f"--config={name}: the file {file!r} does not exist; give {SHIPPED}:words, as in "
            f"{EXAMPLE}, or FILE.py:words"
        ) from None
    except Exception as error:  # a config file runs any code
        why = reason(error)
    if why:
        raise UserError(
            f"--config={name}: {file!r} is not a config ({why}); give {SHIPPED}:words, as in "
            f"{EXAMPLE}, or a file like configs/pixelrec.py"
        )
    return config


def as_file(name: str) -> str:
    """Returns the name "FILE.py:words" of a config that may be named "pixelrec:words"."""
    file, colon, words = expand_user(name).partition(":")
    if file == SHIPPED:
        file = resources.files("pixelrec_jax.configs") / "pixelrec.py"
    return f"{file}{colon}{words}"


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line of a program that has a flag --config; returns other arguments.

    Raises:
      UserError: as `load_config`, or an override names an unknown key.
    """
    line = "\n".join(argv)
    given = re.findall(r"^--?config[=\n](.*)$", line, re.MULTILINE)
    config = load_config(given[-1]) if given else None
    try:
        return flags.FLAGS(with_files(argv))
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):  # only the config's file defines such flags
            raise UserError(
                f"--{error.flagname} needs the config of the run before it; give "
                f"--config={SHIPPED}:words or --config=FILE.py:words"
            ) from None
        raise
    except (AttributeError, KeyError):  # of ml_collections, for an override of an unknown key
        if config is not None:
            known = flatten(config.to_dict())
            check_keys(re.findall(r"^--?(?:no)?config\.([\w.]+)", line, re.MULTILINE), known)
        raise


def with_files(argv: Sequence[str]) -> list[str]:
    """Returns the command line with a file's name after --config, as ml_collections needs it."""
    files = []
    for before, argument in zip(["", *argv], argv, strict=False):
        if form := re.fullmatch(r"(--?config=)(.*)", argument, re.DOTALL):
            argument = form[1] + as_file(form[2])
        elif before in ("--config", "-config"):
            argument = as_file(argument)
        files.append(argument)
    return files


def check_keys(keys: Iterable[str], known: Mapping[str, Any]) -> None:
    """Raises `UserError` for a dotted key that a config does not have."""
    for key in keys:
        if key not in known:
            raise UserError(f"the config has no key {key!r}{nearest_key(key, known)}") from None


def mesh_shape(mesh: ConfigDict, devices: int, *, slices: int = 1) -> tuple[int, int, int]:
    """Returns the sizes of the mesh axes data, fsdp and tensor; data=-1 takes the other devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or to that of a slice.
    """
    fixed = mesh.fsdp * mesh.tensor
    data = devices // max(fixed, 1) if mesh.data == -1 else mesh.data
    if min(data, mesh.fsdp, mesh.tensor) < 1 or data * fixed != devices:
        raise UserError(
            f"mesh data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor} does not cover the "
            f"{devices} devices; their product must be {devices} (data=-1 takes the rest)"
        )
    if data % slices:
        raise UserError(
            f"mesh fsdp={mesh.fsdp} tensor={mesh.tensor} does not fit {devices // slices} devices, "
            f"one of {slices} slices; their product must divide it"
        )
    return data, mesh.fsdp, mesh.tensor


def check_batch_size(batch_size: int, shards: int) -> None:
    """Raises `UserError` if a global batch does not divide into equal data shards."""
    if batch_size % shards:
        raise UserError(
            f"train.batch_size={batch_size} is not divisible by the {shards} data shards of the "
            f"device mesh; choose a multiple of {shards}"
        )


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted key, as in "optim.lr"."""
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat
