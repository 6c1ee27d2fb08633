"""Measures steps that stream images and steps that begin at cached activations, in one run.

python -m benchmarks.sources [--items=clip_vit_b32,clip_rn50] [--sequences=8] [--steps=3]
    [--image_size=112]

The recommender is SASRec with the trained blocks of each encoder's config. Weights, images and
activations are random and in memory; batches are made before the timing. Steps of the two sources
take turns, so that both see the same machine. FLOPs are those of the model as written.
"""

import json
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags
from jax.typing import DTypeLike

from benchmarks.synthetic import RandomImages, random_interactions
from benchmarks.timing import stage
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.system import program
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.flops import StepFlops
from pixelrec_jax.training.frozen_blocks import FrozenBlocks
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.step import make_train_step


class RandomActivations:
    """A store with a few random activations that all items share."""

    field = "activation"
    fingerprint = ""
    watched = ()

    def __init__(self, entry: tuple[int, ...], dtype: DTypeLike):
        """Makes a store of activations of this shape and type."""
        self._entries = np.random.default_rng(0).normal(size=(64, *entry)).astype(dtype)

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns dtype[n, ...]."""
        return self._entries[ids % 64]


def measure(
    item: str, *, sequences: int, steps: int, dtype: str, image_size: int
) -> dict[str, float]:
    """Returns the median seconds and the operations of a step of both sources."""
    config = load_config(f"pixelrec:user=sasrec,item={item},dataset=pixel200k").unlock()
    config.train.batch_size = sequences * jax.device_count()
    config.item.weights, config.item.dtype, config.data.workers = "", dtype, 0
    config.item.image_size = image_size or config.item.image_size
    streaming = build_experiment(
        config,
        interactions=random_interactions(4_096, 10_000),
        store=RandomImages(config.item.image_size),
    )
    state = init_state(streaming)
    frozen = FrozenBlocks(streaming)
    rows = frozen.activations(frozen.variables_in(state.variables))
    cached = streaming.reading(RandomActivations(rows.shape[1:], rows.dtype))
    result, calls = {}, {}
    for source, experiment in (("stream", streaming), ("cached", cached)):
        batch = make_global_arrays(experiment.batches[0], experiment.mesh, BATCH_SPEC)
        calls[source] = make_train_step(experiment), batch, experiment.resident
        count = StepFlops(experiment, make_train_step)
        result[f"{source}_tflop"] = count(batch) / 1e12
    times: dict[str, list[float]] = {source: [] for source in calls}
    with stage(f"{item}: {1 + steps} steps of each source, the first compiles"):
        for _ in range(1 + steps):
            for source, (step, *arguments) in calls.items():
                start = time.perf_counter()
                state, metrics = step(state, *arguments)
                jax.block_until_ready(metrics["loss"])
                times[source].append(time.perf_counter() - start)
    for source, seconds in times.items():
        result[f"{source}_seconds"] = float(np.median(seconds[1:]))
    for unit in ("seconds", "tflop"):
        result[f"{unit}_ratio"] = result[f"stream_{unit}"] / result[f"cached_{unit}"]
    return result


def _define_flags() -> None:
    flags.DEFINE_list("items", ["clip_vit_b32"], "encoders to measure")
    flags.DEFINE_integer("sequences", 8, "sequences a device", lower_bound=1)
    flags.DEFINE_integer("steps", 3, "timed steps of each source", lower_bound=1)
    flags.DEFINE_integer("image_size", 0, "pixels; 0 takes those of the encoder", lower_bound=0)
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "compute type")


def main(_: Sequence[str]) -> None:
    """Prints one JSON line for the device and one for each encoder."""
    values, device = flags.FLAGS, jax.devices()[0]
    setting = {"device": f"{jax.device_count()} x {device.device_kind}", "jax": jax.__version__}
    print(json.dumps(setting | {"dtype": values.dtype}), flush=True)
    for item in values["items"].value or ():
        numbers = measure(
            item,
            sequences=values.sequences,
            steps=values.steps,
            dtype=values.dtype,
            image_size=values.image_size,
        )
        row = {"item": item} | {name: round(value, 4) for name, value in numbers.items()}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    _define_flags()
    program.run(main)
