"""Loading a config from its file."""

import re
from collections.abc import Sequence
from importlib import resources

from absl import flags
from ml_collections import ConfigDict, config_flags

from pixelrec_jax.configs.keys import KEYS
from pixelrec_jax.system.config import check_keys, flatten
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.storage import expand_user

SHIPPED = "pixelrec"  # the name of this package's own config, instead of a file
EXAMPLE = f"{SHIPPED}:user=sasrec,item=id,dataset=toy"


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
        absent = [section for section in KEYS if section not in config.to_dict()]
        why = f"it lacks {', '.join(absent)}" if absent else ""
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
        if given := re.fullmatch(r"(--?config=)(.*)", argument, re.DOTALL):
            argument = given[1] + as_file(given[2])
        elif before in ("--config", "-config"):
            argument = as_file(argument)
        files.append(argument)
    return files
