"""The programs of a run, lowered for a TPU topology, without reading or allocating anything.

With the package libtpu, JAX makes the devices of a topology without a TPU
(`jax.experimental.topologies`). Datasets are random, with the official numbers of users, items and
interactions, which determine the shapes; images are only shapes.
"""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import topologies
from jax.stages import Lowered
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from pixelrec_jax.data.interactions import Interactions, load_interactions
from pixelrec_jax.data.manifest import Manifest
from pixelrec_jax.data.split import leave_one_out
from pixelrec_jax.data.tasks import build_task
from pixelrec_jax.data.types import Batch
from pixelrec_jax.ingest.official import OFFICIAL
from pixelrec_jax.items import uses_features, uses_pixels
from pixelrec_jax.launch.slices import Slice
from pixelrec_jax.parallel.resident import sharded_rows
from pixelrec_jax.parallel.sharding import (
    BATCH_SPEC,
    build_mesh,
    bytes_per_device,
    num_shards,
    shapes,
)
from pixelrec_jax.system.chips import CHIPS, Chip
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.start_jax import quiet_libtpu
from pixelrec_jax.training.experiment import Experiment, build_experiment
from pixelrec_jax.training.frozen_blocks import FrozenBlocks
from pixelrec_jax.training.state import TrainState, state_template
from pixelrec_jax.training.step import make_train_step

# libtpu reads this when it starts. Otherwise it would let only one process compile, as if it used a
# TPU.
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

_SHORTEST = 6  # fewest interactions of a user in Pixel200K
COUNTS = {name.lower(): official.counts for name, official in OFFICIAL.items()}


@dataclass(frozen=True)
class Pod:
    """TPU devices, which need not exist.

    Attributes:
      chip: the peaks of a device.
      devices: the devices of all slices.
      slices: number of slices, all with the same topology.
    """

    chip: Chip
    devices: list[jax.Device]
    slices: int

    def coordinates(self, experiment: Experiment) -> list[tuple[int, ...]]:
        """Returns the coordinates of a slice's devices in the torus, in the order of the mesh."""
        devices = experiment.mesh.devices.flat
        first = getattr(devices[0], "slice_index", 0)
        return [tuple(x.coords) for x in devices if getattr(x, "slice_index", 0) == first]


def describe_pod(topology: str, *, slices: int = 1) -> Pod:
    """Returns the devices of a slice, which `Slice.parse` reads, or of several.

    Raises:
      UserError: libtpu is not installed, or the slice does not exist.
    """
    on = Slice.parse(topology)
    if on.generation not in CHIPS:
        raise UserError(
            f"--topology={topology}: the peaks of {on.generation} are not known; give one of "
            f"{', '.join(CHIPS)}"
        )
    if slices < 1:
        raise UserError(f"--num_slices={slices}; expected 1 or more")
    quiet_libtpu()
    # Everything except the compiler runs on the CPU, even if there are TPUs.
    jax.config.update("jax_platforms", "cpu")
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if on.chips == 1:  # less than a host
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=str(on), **options)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if not _libtpu_installed():
            raise UserError(
                f'the TPU compiler is missing; pip install "jax[tpu]=={jax.__version__}", on Linux '
                "(x86-64) only"
            ) from None
        raise UserError(f"--topology={topology!r}: {reason(error)}") from None
    return Pod(CHIPS[on.generation], list(described.devices), slices)


def leave_cache() -> None:
    """Keeps this process from JAX's cache of compiled programs, which cannot read a pod's."""
    jax.config.update("jax_enable_compilation_cache", False)


def _libtpu_installed() -> bool:
    return importlib.util.find_spec("libtpu") is not None


class Zeros:
    """A store of images or activations that are only shapes and take no memory."""

    fingerprint = ""
    watched = ()

    def __init__(self, field: str, entry: tuple[int, ...], dtype: DTypeLike):
        """Makes a store for a field of `Items` with entries of this shape and type."""
        self.field, self._entry, self._dtype = field, entry, dtype

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns dtype[n, ...]: one zero, broadcast."""
        return np.broadcast_to(np.zeros((), self._dtype), (*ids.shape, *self._entry))


def official(name: str, *, with_items: bool = True) -> Interactions:
    """Returns random interactions with the counts of an official dataset, named as in configs.

    Without items, all interactions have item 1, which is enough to count training examples.
    """
    counts = COUNTS[name]
    users, total = counts["users"], counts["interactions"]
    rng = np.random.default_rng(0)
    shortest = min(_SHORTEST, total // users)
    share = rng.exponential(size=users)
    length = shortest + rng.multinomial(total - shortest * users, share / share.sum())
    if with_items:
        # More draws would not change how often items of a batch repeat.
        items = np.resize(random_items(rng, min(total, 4_000_000), counts["items"]), total)
    else:
        items = np.broadcast_to(np.int32(1), total)
    offsets = np.concatenate([[0, 0], np.cumsum(length)])
    time = np.broadcast_to(np.int64(0), total)
    manifest = cast(Manifest, {"counts": dict(counts)})  # of data in memory
    return Interactions(offsets, items, time, manifest, Path())


def experiment(config: ConfigDict, pod: Pod, *, examples_per_chip: int = 0) -> Experiment:
    """Builds the experiment of a config on a pod; `examples_per_chip` changes its batch size.

    Raises:
      UserError: the config is wrong, or needs features or times, which official counts do not give.
    """
    config = config.copy_and_resolve_references().unlock()
    if examples_per_chip:
        shards = num_shards(build_mesh(config.mesh, pod.devices), BATCH_SPEC)
        config.train.batch_size = examples_per_chip * shards
    known, size = config.dataset.name in COUNTS, config.item.get("image_size", 0)
    if known and (uses_features(config.item) or config.dataset.split.name != "leave_one_out"):
        raise UserError(
            f"item={config.item.name} with split={config.dataset.split.name} needs more of a "
            "dataset than its size; give dataset=custom and --config.dataset.path=DIR"
        )
    built = build_experiment(
        config,
        devices=pod.devices,
        interactions=official(config.dataset.name)
        if known
        else load_interactions(config.dataset.path),
        store=Zeros("image", (size, size, 3), np.uint8) if uses_pixels(config.item) else None,
        compile_only=True,
    )
    return _with_activations(built, pod) if config.item.get("source") == "cached" else built


def _with_activations(experiment: Experiment, pod: Pod) -> Experiment:
    """Returns the experiment that reads activations: from the devices if they fit there."""
    state, frozen = state_template(experiment), FrozenBlocks(experiment)
    rows = frozen.activations(frozen.variables_in(state.variables))
    fits = frozen.fits_on_devices(rows, int(pod.chip.hbm) - bytes_per_device(state))
    placed = sharded_rows(rows, experiment.mesh) if fits else None
    return experiment.reading(Zeros("activation", rows.shape[1:], rows.dtype), placed)


def lower_train_step(experiment: Experiment, state: TrainState) -> Lowered:
    """Lowers the train step; `state` is its `state_template`."""
    if not state.trainable:
        raise UserError(f"user={experiment.config.user.name} has nothing to train; give another")
    return make_train_step(experiment).lower(state, _batch(experiment), experiment.resident)


def _batch(experiment: Experiment) -> Batch:
    return shapes(experiment.batches[0], experiment.mesh, BATCH_SPEC)


def images_per_step(experiment: Experiment) -> int:
    """Returns how many items all devices encode in a step, including unused slots."""
    return _batch(experiment).items.id.size


def steps_per_epoch(config: ConfigDict, dataset: str, batch_size: int) -> int:
    """Returns the number of batches in an epoch of an official dataset, split by leave-one-out."""
    split = leave_one_out(official(dataset, with_items=False))
    return -(-len(build_task(config, split)) // batch_size)


def random_items(rng: np.random.Generator, count: int, items: int) -> np.ndarray:
    """Returns items int32[count] in 1..items; low ones are popular, with a long tail."""
    rank = rng.pareto(1.0, count)
    return (rank / (1 + rank) * items).astype(np.int32) + 1
