"""Says what a run needs on a TPU pod, and whether it fits, on a machine without TPUs.

pixelrec dryrun --topology=v5e:16x16 --sequences_per_chip=64 [--num_slices=2] [--json=FILE] \
    --config=pixelrec:user=sasrec,item=clip_vit_b32,dataset=pixel200k

The train step, the encoding of the catalogue and the ranking are compiled for the pod by the real
compiler (`pip install "jax[tpu]"`). docs/dryrun.md says how to read the result.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from pixelrec_jax.system import errors
from pixelrec_jax.system.config import parse_flags
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import write_json


def main(_: Sequence[str]) -> None:
    """Runs what the flags describe."""
    from pixelrec_jax.launch.dryrun.estimate import dry_run, report, writable

    values = flags.FLAGS
    if values.config is None:
        raise UserError("--config is missing; give pixelrec:words, that of the run")
    path = writable("json", values.json) if values.json else None
    result = dry_run(
        values.config,
        values.topology,
        slices=values.num_slices,
        sequences_per_chip=values.sequences_per_chip,
    )
    print(report(result))
    if path:
        write_json(path, result)


def _define_flags() -> None:
    config_flags.DEFINE_config_file("config", None, "pixelrec:words or FILE.py:words, as of a run")
    flags.DEFINE_string("topology", None, "of a slice: v5e:16x16, v5p:4x4x4", required=True)
    flags.DEFINE_integer("num_slices", 1, "slices, connected by the data center's network")
    flags.DEFINE_integer(
        "sequences_per_chip",
        0,
        "training examples of each data shard, a device of mesh.tensor=1; default is what "
        "train.batch_size gives",
        lower_bound=0,
    )
    flags.DEFINE_string("json", "", "file to write the same to")


if __name__ == "__main__":
    _define_flags()
    errors.run(main, parse_flags=parse_flags)
