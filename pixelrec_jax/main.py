"""Trains a recommender, or evaluates a trained one.

python -m pixelrec_jax.main --workdir=DIR \
    --config=configs/pixelrec.py:user=sasrec,item=clip_vit_b32,dataset=pixel200k
"""

import re
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from pixelrec_jax import checkpoint, distributed, errors, report, storage, train
from pixelrec_jax import workdir as workdirs
from pixelrec_jax.config import flatten, load_config

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "FILE.py:words, as in configs/pixelrec.py:user=sasrec,item=id,dataset=toy; any key can be "
    "overridden, as in --config.optim.lr=1e-3. Default: the config that --workdir holds.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a started run is continued.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate"], "Train and evaluate, or evaluate the best checkpoint."
)
_DISTRIBUTED = flags.DEFINE_string(
    "distributed",
    "",
    "Joins several processes to one run, each of which is started with the same command: auto on "
    "Cloud TPU, GKE, Slurm and Open MPI; elsewhere HOST:PORT,PROCESS,PROCESSES, the address on "
    "which process 0 listens, the number of this process and of all processes.",
)


def main(argv: Sequence[str]) -> None:
    """Runs what the flags describe."""
    del argv
    if not _WORKDIR.value:
        raise errors.UserError("--workdir is missing; give the folder of the run")
    workdir = storage.path(_WORKDIR.value)
    run = train.train_and_evaluate if _MODE.value == "train" else train.evaluate
    with distributed.joined(_DISTRIBUTED.value, lambda: checkpoint.remedy(workdir / "checkpoints")):
        run(_config(workdir), workdir)
        if jax.process_index() == 0:
            print(report.table([workdir]))


def _config(workdir: Path) -> ConfigDict:
    try:
        if _CONFIG.value is None:
            return workdirs.read_config(workdir)
        _CONFIG.value.to_dict()  # a file that could not be loaded raises on its first use
        return _CONFIG.value
    except OSError:
        raise _no_file() from None


def _no_file() -> errors.UserError:
    return errors.UserError(
        "the file of --config does not exist; give FILE.py:words, as in "
        "configs/pixelrec.py:user=sasrec,item=id,dataset=toy"
    )


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config."):  # known only together with its file
            raise errors.UserError(
                f"--{error.flagname} needs --config=FILE.py:words, that of the run, before it"
            ) from None
        raise
    except OSError:
        raise _no_file() from None
    except AttributeError:  # how ml_collections reports an override of a key that is not there
        line = "\n".join(argv)
        file = re.search(r"^--?config[=\n](.+)$", line, re.MULTILINE)
        known = flatten(load_config(file[1]).to_dict()) if file else {}
        for key in re.findall(r"^--?config\.([\w.]+)", line, re.MULTILINE):
            if file and key not in known:
                hint = errors.nearest(key, known)
                raise errors.UserError(f"the config has no key {key!r}{hint}") from None
        raise


if __name__ == "__main__":
    errors.run(main, parse_flags=_parse_flags)
