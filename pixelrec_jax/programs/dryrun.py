r"""Estimates the cost of a run on a TPU pod, and whether it fits, on a machine without TPUs.

pixelrec dryrun --topology=v5e:16x16 --examples_per_chip=64 [--num_slices=2] [--json=FILE] \
    --config=pixelrec:user=sasrec,item=clip_vit_b32,dataset=pixel200k

The real compiler (`pip install "jax[tpu]"`) compiles the train step, the encoding of the catalogue
and the ranking for the pod. docs/dryrun.md explains the result.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from pixelrec_jax.configs.loading import parse_flags
from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import write_json


def main(_: Sequence[str]) -> None:
    """Runs the dry run that the flags describe and prints the result."""
    from pixelrec_jax.launch.dryrun.estimate import dry_run, report, writable
    from pixelrec_jax.launch.dryrun.programs import leave_cache

    leave_cache()
    values = flags.FLAGS
    if values.config is None:
        raise UserError("--config is missing; give that of the run, as pixelrec:words")
    path = writable("json", values.json) if values.json else None
    result = dry_run(
        values.config,
        values.topology,
        slices=values.num_slices,
        examples_per_chip=values.examples_per_chip,
    )
    print(report(result))
    if path:
        write_json(path, result)


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "pixelrec:words or FILE.py:words, as for a run")
    flags.DEFINE_string("topology", None, "TPU slice: v5e:16x16, v5p-128", required=True)
    flags.DEFINE_integer("num_slices", 1, "slices, connected by the data center's network")
    flags.DEFINE_integer(
        "examples_per_chip",
        0,
        "training examples of each data shard (a device, if mesh.tensor=1); by default "
        "train.batch_size is used",
        lower_bound=0,
    )
    program.define_path("json", "", "file for the same result in JSON")


if __name__ == "__main__":
    program.run(main, define_flags=_define_flags, parse_flags=parse_flags)
