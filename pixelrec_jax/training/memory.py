"""Whether a run fits the memory of its devices, told before anything is allocated."""

import math
import os

import jax

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.state import state_template


def check_memory(experiment: Experiment) -> None:
    """Checks that the state alone fits; gradients, activations and data need more.

    A system that is short of memory may kill a program without a word.

    Raises:
      UserError: parameters and the optimizer's state are larger than the memory of a device.
    """
    there = memory_of_a_device()
    needed = state_bytes(experiment)
    if there is None or needed <= there:
        return
    config = experiment.config
    raise UserError(
        f"the parameters and the optimizer's state take {needed / 2**30:,.1f} GiB on each device, "
        f"which has {there / 2**30:,.1f} GiB; lower width={config.width}, or give more devices and "
        f"split large tables over them with mesh.fsdp={config.mesh.fsdp}"
    )


def state_bytes(experiment: Experiment) -> int:
    """Returns how many bytes of the state a device holds."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(state_template(experiment))
    )


def memory_of_a_device() -> int | None:
    """Returns the bytes that a device may use, None if it does not tell.

    CPU devices share the memory of the machine.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return whole // jax.local_device_count()
    return (device.memory_stats() or {}).get("bytes_limit")
