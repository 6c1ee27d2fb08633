"""Measures training steps with a short and a long table of ids, lazy and dense.

python -m benchmarks.tables [--items=100000,10000000] [--kinds=lazy,dense] [--steps=30]

SASRec on random interactions. With `optim.lazy_tables` a step changes only the rows of its batch,
so that its time should not depend on the length of the table; a dense step changes all rows. Steps
on the tables alternate, so that whatever slows the machine slows both. Ten million rows of width 32
take 3.8 GB with their moments. Batches are made before the timing.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks.synthetic import random_interactions
from benchmarks.timing import stage
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.system import program
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.step import make_train_step

_ITEMS = flags.DEFINE_list("items", ["100000", "10000000"], "Numbers of items, which are rows.")
_WIDTH = flags.DEFINE_integer("width", 32, "Width of the table.", lower_bound=4)
_KINDS = flags.DEFINE_list("kinds", ["lazy", "dense"], "Kinds of steps to time.")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps to time on each table.", lower_bound=1)
_USERS = 4_096
_BATCHES = 16  # different ones, over and over
_WARMUP = 3

_CONFIG = Path(__file__).parent.parent / "configs" / "pixelrec.py"


def make_step(items: int, *, lazy: bool) -> Callable[[], jax.Array]:
    """Returns a function that does one training step and returns its loss."""
    config = load_config(f"{_CONFIG}:user=sasrec,item=id,dataset=pixel200k").unlock()
    config.width = _WIDTH.value
    config.optim.lazy_tables = lazy
    experiment = build_experiment(config, interactions=random_interactions(_USERS, items))
    train_step, state = make_train_step(experiment), init_state(experiment)
    batches = [
        make_global_arrays(experiment.batches[index], experiment.mesh, BATCH_SPEC)
        for index in range(_BATCHES)
    ]
    done = 0

    def step() -> jax.Array:
        nonlocal state, done
        batch = batches[done % _BATCHES]
        state, metrics = train_step(state, batch, experiment.resident)
        done += 1
        return metrics["loss"]

    return step


def measure(sizes: Sequence[int], kind: str) -> list[float]:
    """Returns the median seconds of a lazy or dense step with tables of these sizes."""
    steps = []
    for items in sizes:
        with stage(f"{kind}: making a table of {items:,} rows and compiling"):
            step = make_step(items, lazy=kind == "lazy")
            jax.block_until_ready(step())
            steps.append(step)
    seconds = []
    with stage(f"{kind}: timing {_STEPS.value} steps on each table"):
        for _ in range(_WARMUP + _STEPS.value):
            for step in steps:
                start = time.perf_counter()
                jax.block_until_ready(step())
                seconds.append(time.perf_counter() - start)
    timed = np.reshape(seconds, (-1, len(sizes)))[_WARMUP:]
    return [float(x) for x in np.median(timed, axis=0)]


def main(_: Sequence[str]) -> None:
    """Prints one JSON line for each kind."""
    device = jax.devices()[0]
    setting = {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "machine": platform.machine(),
        "jax": jax.__version__,
        "width": _WIDTH.value,
    }
    print(json.dumps(setting), flush=True)
    sizes = [int(items) for items in _ITEMS.value]
    for kind in _KINDS.value:
        seconds = measure(sizes, kind)
        row = {f"ms_{items}": round(1000 * x, 2) for items, x in zip(sizes, seconds, strict=True)}
        ratio = round(seconds[-1] / seconds[0], 3)
        print(json.dumps({"tables": kind, **row, "ratio": ratio}), flush=True)


if __name__ == "__main__":
    program.run(main)
