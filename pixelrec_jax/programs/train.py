"""Trains a recommender, or evaluates a trained one.

pixelrec train --workdir=DIR \
    --config=configs/pixelrec.py:user=sasrec,item=clip_vit_b32,dataset=pixel200k
"""

import signal
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from pixelrec_jax.parallel import distributed
from pixelrec_jax.programs import report
from pixelrec_jax.runs import checkpoint, run_folder
from pixelrec_jax.system import errors, storage
from pixelrec_jax.system.config import parse_flags
from pixelrec_jax.training import train
from pixelrec_jax.training.describe import describe

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "FILE.py:words, as in configs/pixelrec.py:user=sasrec,item=id,dataset=toy; any key can be "
    "overridden, as in --config.optim.lr=1e-3. Default: the config that --workdir holds.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a started run is continued.")
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "describe"],
    "Train and evaluate; evaluate the best checkpoint; or print the config with what each key "
    "means, and the size of the model and of the training, and stop.",
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
    if _MODE.value == "describe" and _CONFIG.value is not None:
        print(describe(_CONFIG.value))
        return
    if not _WORKDIR.value:
        raise errors.UserError("--workdir is missing; give the folder of the run")
    workdir = storage.path(_WORKDIR.value)
    if _MODE.value == "describe":
        print(describe(_config(workdir)))
        return
    # While nothing can be saved, SIGTERM ends the run as Ctrl-C does, see `stop_request`.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run = train.train_and_evaluate if _MODE.value == "train" else train.evaluate
    with distributed.joined(
        _DISTRIBUTED.value, lambda: checkpoint.resume_hint(workdir / "checkpoints")
    ):
        run(_config(workdir), workdir)
        if jax.process_index() == 0:
            print(report.table([workdir]))


def _config(workdir: Path) -> ConfigDict:
    return run_folder.read_config(workdir) if _CONFIG.value is None else _CONFIG.value


if __name__ == "__main__":
    errors.run(main, parse_flags=parse_flags)
