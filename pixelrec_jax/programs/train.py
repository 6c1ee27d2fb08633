"""Trains a recommender, or evaluates a trained one.

pixelrec train --workdir=DIR --config=pixelrec:user=sasrec,item=clip_vit_b32,dataset=pixel200k
"""

import re
import signal
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from pixelrec_jax.configs.loading import SHIPPED, load_config, parse_flags
from pixelrec_jax.system import console, faults, program, storage
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import UserError

# The options that decide how much memory a run needs.
_SIZES = re.compile(
    r"width|(task|negatives|user|item|data)\.\w+|(train|eval)\.\w*batch_size|eval\.chunk"
)


def _define_flags() -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "pixelrec:words, as in pixelrec:user=sasrec,item=id,dataset=toy, or FILE.py:words for a "
        "config of your own; any key can be overridden, as in --config.optim.lr=1e-3. Default: the "
        "config that --workdir holds.",
    )
    program.define_path("workdir", None, "Folder of the run; a started run is continued.")
    flags.DEFINE_enum(
        "mode",
        "train",
        ["train", "evaluate", "describe"],
        "Train and evaluate; only evaluate the best checkpoint; or only print the config with the "
        "meaning of each key, and the size of the model and of the training.",
    )
    flags.DEFINE_string(
        "distributed",
        "",
        "Joins several processes, started with the same command, to one run: auto on Cloud TPU, "
        "GKE, Slurm and Open MPI; elsewhere HOST:PORT,PROCESS,PROCESSES: the address on which "
        "process 0 listens, the number of this process, and how many processes there are.",
    )


def main(_: Sequence[str]) -> None:
    """Trains, evaluates or describes, as --mode says."""
    with console.status("loading the program"):
        import jax

        from pixelrec_jax.parallel import distributed
        from pixelrec_jax.runs import checkpoint, report, run_folder
        from pixelrec_jax.system.start_jax import start_jax
        from pixelrec_jax.training import train
        from pixelrec_jax.training.describe import describe_config

    values = flags.FLAGS
    if not values.workdir and (values.mode != "describe" or values.config is None):
        raise UserError("--workdir is missing; give the folder of the run")
    workdir = storage.path(values.workdir or "")
    if values.mode == "describe":
        start_jax()
        config = run_folder.read_config(workdir) if values.config is None else values.config
        print(describe_config(config))
        return
    run = train.train_and_evaluate if values.mode == "train" else train.evaluate
    with distributed.joined(
        values.distributed, lambda: checkpoint.resume_hint(workdir / "checkpoints")
    ):
        start_jax(workdir)
        config = run_folder.read_config(workdir) if values.config is None else values.config
        try:
            run(config, workdir)
        except Exception as error:
            if faults.is_out_of_memory(error):
                raise faults.out_of_memory(error, _sizes(config)) from None
            raise
        if jax.process_index() == 0:
            print(f"{report.table([workdir])}\n\n{_next_steps(workdir)}")


def _next_steps(workdir: Path) -> str:
    """Returns where the results are and what can be done with them."""
    return (
        f"results: {workdir}/result.json (fractions), ranks.parquet, test_top_k.parquet\n"
        f"curves:  tensorboard --logdir={workdir}\n"
        f"next:    pixelrec report {workdir} --examples=3  (users and their lists)\n"
        f"         pixelrec report {workdir} OTHER  (runs side by side)"
    )


def _sizes(config: ConfigDict) -> dict[str, tuple[float, float]]:
    """Returns the options that need memory, each with its value and that of the shipped config."""
    words = f"{SHIPPED}:user={config.user.name},item={config.item.name}"
    usual = flatten(load_config(words).to_dict())
    return {
        key: (value, usual[key])
        for key, value in flatten(config.to_dict()).items()
        if _SIZES.fullmatch(key) and type(value) is type(usual.get(key)) is int
    }


if __name__ == "__main__":
    # Until a step can be saved, SIGTERM ends the run as Ctrl-C does; see `stop_request`.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    program.run(main, define_flags=_define_flags, parse_flags=parse_flags)
