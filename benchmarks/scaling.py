"""Prints communication and memory of a train step on 1, 2, 4 and 8 devices, from its HLO.

python -m benchmarks.scaling [--item=vit_s16] [--examples=4]

The devices are virtual; nothing is run or allocated, so that models of the paper's size fit.
Each device has its own examples, so that the batch grows with the devices, except along "tensor",
where all devices have the same examples.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from rich import box
from rich.table import Table

from benchmarks.timing import stage
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.launch.dryrun import programs
from pixelrec_jax.launch.dryrun.roofline import compile_and_count
from pixelrec_jax.parallel.sharding import AXES
from pixelrec_jax.system import program
from pixelrec_jax.system.chips import CHIPS
from pixelrec_jax.system.console import render
from pixelrec_jax.training.state import state_template

_USER = flags.DEFINE_string("user", "sasrec", "User encoder.")
_ITEM = flags.DEFINE_string("item", "clip_vit_b32", "Item encoder.")
_TRAINABLE = flags.DEFINE_string("trainable", "all", "Blocks of the vision encoder to train.")
_EXAMPLES = flags.DEFINE_integer("examples", 2, "Examples of each device.", lower_bound=1)
_AXES = flags.DEFINE_multi_enum("axes", AXES, AXES, "Axes of the mesh to grow; repeatable.")

_CONFIG = Path(__file__).parent.parent / "configs" / "pixelrec.py"


def measure(axis: str, devices: int) -> list[str]:
    """Returns a row of the table, for a mesh with all devices along one axis."""
    words = f"user={_USER.value},item={_ITEM.value},dataset=pixel200k"
    config = load_config(f"{_CONFIG}:{words}").unlock()
    if "trainable" in config.item:
        config.item.trainable = _TRAINABLE.value
    config.mesh.update({"data": 1, "fsdp": 1, "tensor": 1, axis: devices})
    pod = programs.Pod(CHIPS["v5e"], jax.devices()[:devices], slices=1)
    experiment = programs.experiment(config, pod, examples_per_chip=_EXAMPLES.value)
    state = state_template(experiment)
    line = [(place,) for place in range(devices)]
    cost = compile_and_count(
        programs.lower_train_step(experiment, state), pod.chip, coordinates=line
    )
    sizes = (programs.bytes_per_device(state), cost.temporary, sum(cost.sent.values()))
    kinds = (f"{kind} {size / 2**20:.1f}" for kind, size in sorted(cost.sent.items()))
    return [f"{axis}={devices}", *(f"{x / 2**20:.1f}" for x in sizes), ", ".join(kinds) or "-"]


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    del argv
    meshes = [("data", 1), *((axis, n) for axis in _AXES.value for n in (2, 4, 8))]
    table = Table("mesh", "state", "temporaries", "sent", "of which", box=box.SIMPLE)
    for axis, devices in meshes:
        with stage(f"mesh {axis}={devices}"):
            table.add_row(*measure(axis, devices))
    print(f"MiB of each device; user={_USER.value}, item={_ITEM.value}")
    print(render([table]))


if __name__ == "__main__":
    program.run(main)
