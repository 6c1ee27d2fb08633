"""`item.source=cached`: frozen blocks run once for each item, and steps begin after them."""

import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelrec_jax.data import activations
from pixelrec_jax.data.activations import KEY, ActivationStore, Key, describe
from pixelrec_jax.data.types import PAD
from pixelrec_jax.parallel.distributed import first_problem, in_first_process, wait_for_all
from pixelrec_jax.parallel.resident import sharded_rows
from pixelrec_jax.parallel.sharding import build_mesh, replicate
from pixelrec_jax.runs.encoding import encode_in_order
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.foreign import one_line
from pixelrec_jax.system.memory import available_memory
from pixelrec_jax.training.experiment import Experiment
from pixelrec_jax.training.frozen_blocks import FrozenBlocks

_OWN_DEVICES = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})


def with_activations(experiment: Experiment, variables: dict) -> Experiment:
    """Returns the experiment that reads activations, made if needed, if its config says so.

    Args:
      experiment: any experiment; one that streams or that reads activations stays as it is.
      variables: the variables of its state. All states of a run have the same frozen ones.

    Raises:
      UserError: the activations cannot be made or read.
    """
    if experiment.config.item.get("source") != "cached" or experiment.activations is not None:
        return experiment
    frozen = FrozenBlocks(experiment)
    own = _on_host(frozen.variables_in(variables), experiment.mesh)
    key = frozen.key(own)
    folder = _folder(experiment, key)
    damaged = activations.damaged(activations.files(folder).values())
    complete = not activations.missing(folder, key) and (folder / KEY.name).exists()
    if first_problem("" if complete and not damaged else "activations are missing"):
        _make(experiment, partial(_encode, experiment, frozen, own), folder, key, damaged)
    _check(folder, key)
    store = ActivationStore(folder, key)
    shape = frozen.activations(own)
    free = _free_on_devices(experiment.mesh)
    fits = free is not None and frozen.fits_on_devices(shape, free)
    on_devices = not first_problem("" if fits else "the devices of a process lack the memory")
    _say(f"{describe(key)} in {folder}, kept {_place(experiment.mesh, key, free, on_devices)}")
    rows = _on_devices(store, shape, experiment.mesh) if on_devices else None
    return experiment.reading(store, rows)


def _on_host(tree: dict, mesh: Mesh) -> dict:
    """Returns arrays of the mesh in the memory of every process."""
    whole = jax.jit(lambda tree: jax.tree.map(partial(replicate, mesh=mesh), tree))(tree)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole)


def _folder(experiment: Experiment, key: Key) -> Path:
    """Returns the folder that has the activations of a key, or the one to make them in."""
    roots = activations.roots(experiment.config.item.cache_dir, experiment.interactions.directory)
    folders = [root / activations.folder_name(key) for root in roots]
    complete = (folder for folder in folders if not activations.missing(folder, key))
    return next(complete, folders[-1])


def _check(folder: Path, key: Key) -> None:
    """Raises `UserError` if a folder has the activations of another key, or none."""
    try:
        found = KEY.read(folder / KEY.name)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} has no {KEY.name}; start the same command again") from None
    if differing := [name for name, value in found.items() if value != dict(key)[name]]:
        raise UserError(
            f"{folder / KEY.name} says that the activations there have another {differing[0]}; "
            f"remove the folder {folder}; its activations are computed again"
        )


# Yields the activations of items int32[n] in their order, batch by batch.
_Encode = Callable[[np.ndarray], Iterator[np.ndarray]]


def _encode(
    experiment: Experiment, frozen: FrozenBlocks, variables: dict, ids: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields the activations of items int32[n] in their order, from this process's devices."""
    own = [x for x in experiment.mesh.devices.flat if x.process_index == jax.process_index()]
    assert experiment.store is not None, "a vision encoder has images"
    return encode_in_order(
        frozen,
        variables,
        ids,
        experiment.store,
        mesh=build_mesh(_OWN_DEVICES, own),
        batch_size=experiment.config.eval.encode_batch_size,
        dtype=frozen.dtype,
        what="activations",
        remedy="give other weights",
    )


def _make(
    experiment: Experiment, encode: _Encode, folder: Path, key: Key, suspect: list[Path]
) -> None:
    """Computes the files that a folder lacks; the processes of a run share the work.

    Before the lock was held, files of `suspect` were damaged; if they still are, they are removed.
    """
    with in_first_process(_locked, folder):
        wait_for_all("activations are locked")
        if (folder / KEY.name).exists():
            _check(folder, key)
        for path in activations.damaged(path for path in suspect if path.exists()):
            _say(f"{path} is damaged; it is computed again")
            path.unlink(missing_ok=True)
        wait_for_all("activations are checked")
        numbers = activations.missing(folder, key)
        _compute(encode, folder, key, numbers[jax.process_index() :: jax.process_count()])
        wait_for_all("activations are made")
        # Without a folder that all processes see, each makes all files in its own.
        _compute(encode, folder, key, activations.missing(folder, key))
        wait_for_all("activations are complete")


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Locks a folder while its activations are made."""
    waiting = f"waiting for another run that makes the activations in {folder}"
    remedy = "name another with item.cache_dir, or take item.source=stream"
    with storage.exclusive(folder, waiting=lambda: _say(waiting), remedy=remedy):
        yield


def _compute(encode: _Encode, folder: Path, key: Key, numbers: list[int]) -> None:
    """Computes and writes the files with these numbers."""
    if not numbers:
        return
    ranges = [activations.rows_of_file(key, number) for number in numbers]
    activations.create(folder, key, rows=sum(map(len, ranges)))
    _say(f"making {describe(key)} in {folder}")
    batches = encode(np.concatenate(ranges).astype(np.int32))
    sizes = [len(rows) for rows in ranges]
    for number, rows in zip(numbers, _cut(batches, sizes), strict=True):
        activations.write(folder, number, rows)


def _cut(batches: Iterator[np.ndarray], sizes: list[int]) -> Iterator[np.ndarray]:
    """Yields arrays of these sizes, made of the rows of others in their order."""
    held: list[np.ndarray] = []
    for size in sizes:
        while sum(map(len, held)) < size:
            held.append(next(batches))
        rows = np.concatenate(held) if len(held) > 1 else held[0]
        yield rows[:size]
        held = [rows[size:]]


def _place(mesh: Mesh, key: Key, free_on_devices: int | None, on_devices: bool) -> str:
    """Returns where activations are kept, with the arithmetic."""
    size = activations.bytes_of(key)
    if on_devices and free_on_devices is not None:
        share = f"{size / mesh.size / 1e9:,.2f} of {free_on_devices / 1e9:,.2f} GB"
        return f"on the devices ({share} that are free on each)"
    free = available_memory()
    where = "in host memory" if size <= free // 2 else "on the disk"
    return f"{where} ({size / 1e9:,.2f} of {free / 1e9:,.2f} GB that are free)"


def _free_on_devices(mesh: Mesh) -> int | None:
    """Returns the free bytes of the fullest device; None if devices use the memory of the host."""
    statistics = [device.memory_stats() for device in mesh.local_devices]
    if not all(statistics):
        return None
    return min(x["bytes_limit"] - x["bytes_in_use"] for x in statistics if x)


def _on_devices(store: ActivationStore, rows: jax.ShapeDtypeStruct, mesh: Mesh) -> jax.Array:
    """Returns all activations, with their rows sharded over all devices."""
    count, placed = rows.shape[0], sharded_rows(rows, mesh)

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None, "JAX gives None for devices of other processes only"
        ids = np.arange(*index[0].indices(placed.shape[0]))
        return store.load(np.where(ids < count, ids, PAD))

    return jax.make_array_from_callback(placed.shape, placed.sharding, read)


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(one_line(line), file=sys.stderr)
