"""Trains a recommender, or evaluates a trained one.

python -m pixelrec_jax.main --config=configs/pixelrec.py:user=sasrec,item=clip_vit_b32,dataset=pixel200k --workdir=DIR
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from pixelrec_jax import errors, report, train
from pixelrec_jax import workdir as workdirs

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file and words; default: the config that --workdir holds.",
    lock_config=True,
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a started run is continued.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate"], "Train and evaluate, or evaluate the best checkpoint."
)


def main(argv: Sequence[str]) -> None:
    """Runs the program that the flags describe."""
    del argv
    if not _WORKDIR.value:
        raise errors.UserError("--workdir is missing; give the folder to write the run to")
    workdir = Path(_WORKDIR.value)
    config = _CONFIG.value if _CONFIG.value is not None else workdirs.read_config(workdir)
    run = train.train_and_evaluate if _MODE.value == "train" else train.evaluate
    run(config, workdir)
    print(report.table([workdir]))


if __name__ == "__main__":
    errors.run(main)
