"""Programs on which a version of the TPU compiler is known to fail, after many minutes."""

from importlib import metadata
from typing import NamedTuple

from ml_collections import ConfigDict

from pixelrec_jax.launch.dryrun.programs import Pod
from pixelrec_jax.launch.dryrun.roofline import CompilerError
from pixelrec_jax.parallel.sharding import BATCH_SPEC, build_mesh, num_shards
from pixelrec_jax.system.chips import CHIPS


class _Failure(NamedTuple):
    """A failure that was seen, and the largest number of examples a chip that compiled."""

    libtpu: str
    item: str
    generation: str
    fails: int  # examples a chip, the smallest number that was seen to fail
    compiles: int


_SEEN = (_Failure("0.0.42.1", item="swin_t", generation="v6e", fails=48, compiles=16),)


def refuse_known_failure(config: ConfigDict, pod: Pod, examples_per_chip: int) -> None:
    """Raises `CompilerError` for a train step on which the installed compiler is known to fail."""
    shards = num_shards(build_mesh(config.mesh, pod.devices), BATCH_SPEC)
    examples = examples_per_chip or config.train.batch_size // shards
    examples //= config.train.microbatches  # so many at once
    try:
        version = metadata.version("libtpu")
    except metadata.PackageNotFoundError:  # a library that TPU_LIBRARY_PATH names
        return
    for seen in _SEEN:
        same = version == seen.libtpu and config.item.name == seen.item
        if same and pod.chip is CHIPS[seen.generation] and examples >= seen.fails:
            raise CompilerError(
                f"libtpu {version} fails on item={seen.item} for {seen.generation} with "
                f"{seen.fails} examples a chip or more, after ten minutes; give "
                f"--examples_per_chip={seen.compiles}, which compiles, or as few at once by "
                "--config.train.microbatches, or install another version"
            )
