"""Measures the speed of training, catalogue encoding and ranking on the present device.

python -m benchmarks.speed [--models=id,clip_vit_b32] [--items=10000] [--steps=10]

Weights and images are random and in memory, so that the disk is not measured; a step includes
making its batch. The batches are the reference's: 64 sequences for ids, 8 sequences
(176 images, of which each distinct one is encoded once) for ViT-B/32.
"""

import json
import platform
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from benchmarks.synthetic import RandomImages, random_interactions
from benchmarks.timing import seconds_per_call, stage
from pixelrec_jax.configs.loading import load_config
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.system import program
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.step import make_train_step

_MODELS = flags.DEFINE_list("models", ["id", "clip_vit_b32"], "Item encoders to measure.")
_ITEMS = flags.DEFINE_integer("items", 10_000, "Catalogue size.", lower_bound=100)
_USERS = flags.DEFINE_integer("users", 4_096, "Users.", lower_bound=64)
_STEPS = flags.DEFINE_integer("steps", 10, "Steps to time, after two to compile.", lower_bound=1)
_ENCODE = flags.DEFINE_integer("encode", 256, "Items of the timed catalogue encoding.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute type.")

_CONFIG = Path(__file__).parent.parent / "configs" / "pixelrec.py"


def measure(item: str) -> dict[str, float]:
    """Measures one item encoder under SASRec."""
    config = load_config(f"{_CONFIG}:user=sasrec,item={item},dataset=pixel200k").unlock()
    pixels = item != "id"
    config.train.batch_size = (8 if pixels else 64) * jax.device_count()
    config.user.dtype = _DTYPE.value
    if pixels:
        config.item.weights = ""
        config.item.dtype = _DTYPE.value
    interactions = random_interactions(_USERS.value, _ITEMS.value)
    store = RandomImages(config.item.image_size) if pixels else None
    experiment = build_experiment(config, interactions=interactions, store=store)
    mesh, batches, evaluator = experiment.mesh, experiment.batches, experiment.evaluator
    state = init_state(experiment)
    train_step = make_train_step(experiment)
    encoded = []

    def step() -> jax.Array:
        nonlocal state
        batch = batches[len(encoded)]
        encoded.append(np.count_nonzero(batch.items.id))
        state, metrics = train_step(
            state, make_global_arrays(batch, mesh, BATCH_SPEC), experiment.resident
        )
        return metrics["loss"]

    with stage(f"{item}: compiling the step"):
        for _ in range(8):  # every number of slots that will occur is compiled before the timing
            jax.block_until_ready(step())
    with stage(f"{item}: timing {_STEPS.value} steps"):
        result = {"step_seconds": seconds_per_call(step, _STEPS.value)}
    result["examples_per_second"] = config.train.batch_size / result["step_seconds"]
    variables = state.variables
    if pixels:
        distinct = float(np.mean(encoded[-_STEPS.value :]))
        result["distinct_images_per_step"] = distinct
        result["distinct_images_per_second"] = distinct / result["step_seconds"]
        # The reference encodes for the same batch 22 images a sequence, with repeats and padding.
        reference = 22 * config.train.batch_size
        result["reference_images_per_second"] = reference / result["step_seconds"]
        few = build_experiment(
            config, interactions=random_interactions(64, _ENCODE.value - 1), store=store
        ).evaluator
        with stage(f"{item}: encoding {_ENCODE.value} items"):
            seconds = seconds_per_call(lambda: few.encode_catalog(variables), 2, warmup=1)
        result["catalog_images_per_second"] = _ENCODE.value / seconds
        shape = (evaluator.source.num_shards, evaluator.source.rows_per_shard, config.width)
        evaluator.encode_catalog = lambda variables, advance=None: jax.jit(
            lambda: jax.random.normal(jax.random.key(0), shape)
        )()
    with stage(f"{item}: ranking for {_USERS.value} users"):
        seconds = seconds_per_call(lambda: evaluator.rank(variables, "test").rank, 3, warmup=1)
    result["ranked_users_per_second"] = _USERS.value / seconds
    return result


def main(argv: Sequence[str]) -> None:
    """Prints one JSON line per item encoder."""
    del argv
    device = jax.devices()[0]
    setting = {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "machine": platform.machine(),
        "jax": jax.__version__,
        "dtype": _DTYPE.value,
        "items": _ITEMS.value,
        "users": _USERS.value,
    }
    print(json.dumps(setting), flush=True)
    for item in _MODELS.value:
        row = {"item": item} | {name: round(value, 4) for name, value in measure(item).items()}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    program.run(main)
