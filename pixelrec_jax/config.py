"""Loading a config from its file, and checking the values that people override."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from pixelrec_jax.errors import UserError, nearest

_ZERO_ALLOWED = (
    "seed",
    "data.workers",
    "train.epochs",
    "train.patience",
    "eval.cold_threshold",
)
_CHECKED_ELSEWHERE = ("mesh.", "dataset.split.")  # by build_mesh and build_split


def load_config(file_and_words: str) -> ConfigDict:
    """Returns the config that a file gives for words, as in "configs/pixelrec.py:item=id"."""
    values = flags.FlagValues()
    # Not named "config": ml_collections would look for that flag's overrides on the command line.
    holder = config_flags.DEFINE_config_file("loaded", file_and_words, flag_values=values)
    values.mark_as_parsed()
    return holder.value


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line of a program with a flag --config, and its overrides.

    Raises:
      UserError: the file or a key does not exist.
    """
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):  # known only together with its file
            raise UserError(
                f"--{error.flagname} needs --config=FILE.py:words, that of the run, before it"
            ) from None
        raise
    except OSError:
        raise _no_file() from None
    except AttributeError:  # how ml_collections reports an override of a key that is not there
        line = "\n".join(argv)
        file = re.search(r"^--?config[=\n](.+)$", line, re.MULTILINE)
        known = flatten(load_config(file[1]).to_dict()) if file else {}
        if file:
            check_keys(re.findall(r"^--?config\.([\w.]+)", line, re.MULTILINE), known)
        raise


def check_keys(keys: Iterable[str], known: Mapping[str, Any]) -> None:
    """Raises `UserError` for a dotted key that a config does not have."""
    for key in keys:
        if key not in known:
            raise UserError(f"the config has no key {key!r}{nearest(key, known)}") from None


def given_config(flag: flags.FlagHolder) -> ConfigDict | None:
    """Returns the config of a flag; None if it was not given.

    Raises:
      UserError: the file does not exist.
    """
    try:
        if flag.value is not None:
            flag.value.to_dict()  # a file that could not be loaded raises on its first use
        return flag.value
    except OSError:
        raise _no_file() from None


def _no_file() -> UserError:
    return UserError(
        "the file of --config does not exist; give FILE.py:words, as in "
        "configs/pixelrec.py:user=sasrec,item=id,dataset=toy"
    )


def check_values(config: ConfigDict) -> None:
    """Raises `UserError` for a value that no run can work with."""
    values = flatten(config.to_dict())
    for name, value in values.items():
        if type(value) is int and not name.startswith(_CHECKED_ELSEWHERE):
            least = 0 if name in _ZERO_ALLOWED or name.startswith("optim.") else 1
            if value < least:
                raise UserError(f"{name}={value}; expected {least} or more")
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{name}={value}; expected a finite number")
        if name.endswith("init_std") and value < 0:
            raise UserError(f"{name}={value}; expected 0 or more")
        if name.endswith(("dropout", "drop_path")) and not 0 <= value < 1:
            raise UserError(f"{name}={value}; expected at least 0 and less than 1")
        if name.endswith("dtype") and value not in ("float32", "bfloat16"):
            raise UserError(f"{name}={value!r}; expected float32 or bfloat16")
        if name == "init.parts" and value not in ("item", "all"):
            raise UserError(f"{name}={value!r}; expected item or all")
        if name == "task.mask_ratio" and not 0 < value < 1:
            raise UserError(f"{name}={value}; expected more than 0 and less than 1")
        if name in ("eval.ks", "item.dnn_layers", "user.dilations"):
            if not all(type(x) is int and x > 0 for x in value):
                raise UserError(f"{name}={value}; expected whole numbers from 1, as in (1, 4)")
            if name != "item.dnn_layers" and not value:
                raise UserError(f"{name} is empty; give at least one number, as in (1, 4)")
    if (config.task.name == "cloze") != ("mask_ratio" in config.task):
        raise UserError(
            f"task.name={config.task.name!r} does not suit user={config.user.name}: cloze needs "
            "task.mask_ratio, which bert4rec has, and no other task takes it"
        )
    if config.loss.epsilon < 0:
        raise UserError(f"loss.epsilon={config.loss.epsilon}; expected 0 or more")
    ks = config.eval.ks
    metrics = [f"{name}@{k}" for name in ("recall", "ndcg") for k in ks]
    if config.eval.select not in metrics:
        raise UserError(
            f"eval.select={config.eval.select!r}; expected one of {', '.join(metrics)}, as eval.ks "
            f"is {tuple(ks)}"
        )


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dicts by dotted key, as in "optim.lr"."""
    flat = {}
    for key, value in tree.items():
        nested = isinstance(value, dict)
        flat.update(flatten(value, f"{prefix}{key}.") if nested else {prefix + key: value})
    return flat
