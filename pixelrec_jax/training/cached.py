"""`item.source=cached`: frozen blocks run once for each item, and steps begin after them."""

import hashlib
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelrec_jax.data import activations
from pixelrec_jax.data.activations import KEY, ActivationStore, Key
from pixelrec_jax.data.types import Items
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.parallel.distributed import first_problem, in_first_process, wait_for_all
from pixelrec_jax.parallel.sharding import build_mesh, replicate
from pixelrec_jax.runs.encoding import encode_in_order
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.foreign import one_line
from pixelrec_jax.system.memory import available_memory
from pixelrec_jax.training.experiment import Experiment

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
    frozen = FrozenBlocks(experiment, variables)
    folder = _folder(experiment, frozen.key)
    damaged = activations.damaged(activations.files(folder).values())
    complete = not activations.missing(folder, frozen.key) and (folder / KEY.name).exists()
    if first_problem("" if complete and not damaged else "activations are missing"):
        _make(experiment, frozen, folder, damaged)
    _check(folder, frozen.key)
    _say(f"{describe(frozen.key)} from {folder}, {_place(frozen.key)}")
    return experiment.reading(ActivationStore(folder, frozen.key))


class FrozenBlocks:
    """The blocks below the first trained one, with their weights.

    Attributes:
      variables: the variables of the item encoder that they read, in host memory.
      key: what their activations depend on.
    """

    def __init__(self, experiment: Experiment, variables: dict):
        """Takes the variables of the state; all processes take part."""
        config, encoder = experiment.config, experiment.model.item_encoder
        assert isinstance(encoder, PixelEncoder), "only a vision encoder has the option"
        last = experiment.interactions.num_items  # the row of the mask item, in every task
        encoder = encoder.clone(
            mask_item=last, backbone=encoder.backbone.clone(remat=False), parent=None
        )
        self._encoder = encoder
        names = encoder.backbone.step_names[: encoder.boundary]
        self.variables = _on_host(_backbone_of(variables, names), experiment.mesh)
        self.dtype = encoder.dtype if config.item.cache_dtype == "exact" else jnp.bfloat16
        (row,) = jax.tree.leaves(jax.eval_shape(self, self.variables, self._example(config)))
        assert experiment.store is not None, "a vision encoder has images"
        self.key: Key = {
            "images": experiment.store.fingerprint,
            "weights": _digest(self.variables),
            "program": self._program(config),
            "encoder": config.item.name,
            "layer": names[-1],
            "image_size": config.item.image_size,
            "normalisation": encoder.normalisation,
            "computed": jnp.dtype(encoder.dtype).name,
            "stored": jnp.dtype(self.dtype).name,
            "shape": [last + 1, *row.shape[1:]],
        }

    def __call__(self, variables: dict, items: Items) -> jax.Array:
        """Returns the activations [M, ...] of items with one leading axis."""
        run = nn.apply(PixelEncoder.run_backbone, self._encoder)
        return run(variables, items, self._encoder.boundary).astype(self.dtype)

    def _example(self, config: ConfigDict) -> Items:
        size = config.item.image_size
        return Items(
            id=jax.ShapeDtypeStruct((1,), jnp.int32),
            image=jax.ShapeDtypeStruct((1, size, size, 3), jnp.uint8),
        )

    def _program(self, config: ConfigDict) -> str:
        """Returns a digest of the program for one item: another version of the code has another."""
        lowered = jax.jit(self.__call__).lower(self.variables, self._example(config))
        return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def _backbone_of(variables: dict, steps: tuple[str, ...]) -> dict:
    """Returns the variables of some steps of the backbone, as those of the item encoder."""
    found = {}
    for collection, tree in variables.items():
        backbone = tree.get("item_encoder", {}).get("backbone", {})
        if chosen := {name: backbone[name] for name in steps if name in backbone}:
            found[collection] = {"backbone": chosen}
    return found


def _on_host(tree: dict, mesh: Mesh) -> dict:
    """Returns arrays of the mesh in the memory of every process."""
    whole = jax.jit(lambda tree: jax.tree.map(partial(replicate, mesh=mesh), tree))(tree)
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), whole)


def _digest(variables: dict[str, dict]) -> str:
    content = hashlib.sha256()
    for path, x in sorted(flatten_dict(variables, sep="/").items()):
        content.update(f"{path} {x.dtype}{x.shape}\n".encode())
        content.update(np.ascontiguousarray(x).data)
    return content.hexdigest()


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
    if differing := [name for name in key if found[name] != key[name]]:
        raise UserError(
            f"{folder / KEY.name} says that the activations there have another {differing[0]}; "
            f"remove the folder {folder}; its activations are computed again"
        )


def _make(experiment: Experiment, frozen: FrozenBlocks, folder: Path, suspect: list[Path]) -> None:
    """Computes the files that a folder lacks; the processes of a run share the work.

    Before the lock was held, files of `suspect` were damaged; if they still are, they are removed.
    """
    with in_first_process(_locked, folder):
        wait_for_all("activations are locked")
        if (folder / KEY.name).exists():
            _check(folder, frozen.key)
        for path in activations.damaged(path for path in suspect if path.exists()):
            _say(f"{path} is damaged; it is computed again")
            path.unlink(missing_ok=True)
        wait_for_all("activations are checked")
        _compute(experiment, frozen, folder, share=True)
        wait_for_all("activations are made")
        # Without a folder that all processes see, each makes all files in its own.
        _compute(experiment, frozen, folder, share=False)
        wait_for_all("activations are complete")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder while its activations are made."""
    waiting = f"waiting for another run that makes the activations in {folder}"
    remedy = "name another with item.cache_dir, or take item.source=stream"
    with storage.exclusive(folder, waiting=lambda: _say(waiting), remedy=remedy):
        yield


def _compute(experiment: Experiment, frozen: FrozenBlocks, folder: Path, *, share: bool) -> None:
    """Computes missing files on the devices of this process, all of them or its share."""
    key = frozen.key
    numbers = activations.missing(folder, key)
    if share:
        numbers = numbers[jax.process_index() :: jax.process_count()]
    if not numbers:
        return
    ranges = [activations.rows_of_files(key)[number] for number in numbers]
    own = [x for x in experiment.mesh.devices.flat if x.process_index == jax.process_index()]
    store = experiment.store
    assert store is not None, "a vision encoder has images"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_space(folder, key, sum(map(len, ranges)))
        KEY.write(folder / KEY.name, key)
        _say(f"making {describe(key)} in {folder}, {len(numbers)} of {len(ranges)} files")
        batches = encode_in_order(
            frozen,
            frozen.variables,
            np.concatenate(ranges).astype(np.int32),
            store,
            mesh=build_mesh(_OWN_DEVICES, own),
            batch_size=experiment.config.eval.encode_batch_size,
            dtype=frozen.dtype,
            what="activations",
            remedy="give other weights",
        )
        sizes = [len(rows) for rows in ranges]
        for number, rows in zip(numbers, _cut(batches, sizes), strict=True):
            activations.write(folder, number, rows)
    except OSError as error:
        raise UserError(
            f"the activations cannot be written to {folder} ({reason(error)}); those that are "
            "written stay; name another folder with item.cache_dir, or take item.source=stream"
        ) from error


def _check_space(folder: Path, key: Key, rows: int) -> None:
    needed, free = activations.bytes_of(key, rows), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{activations.bytes_of(key) / 1e9:,.2f} GB of activations do not fit in {folder}: "
            f"{needed / 1e9:,.2f} GB are missing and {free / 1e9:,.2f} GB are free; name another "
            "folder with item.cache_dir, halve them with item.cache_dtype=bfloat16, or take "
            "item.source=stream"
        )


def _cut(batches: Iterator[np.ndarray], sizes: list[int]) -> Iterator[np.ndarray]:
    """Yields arrays of these sizes, made of the rows of others in their order."""
    held: list[np.ndarray] = []
    for size in sizes:
        while sum(map(len, held)) < size:
            held.append(next(batches))
        rows = np.concatenate(held) if len(held) > 1 else held[0]
        yield rows[:size]
        held = [rows[size:]]


def _place(key: Key) -> str:
    """Returns from where batches read activations, by the memory that is free."""
    free = available_memory()
    where = "in host memory" if activations.bytes_of(key) < free else "on the disk"
    return f"{where} ({free / 1e9:,.2f} GB of memory are free)"


def describe(key: Key) -> str:
    """Returns what activations are and their size, as in "activations after block_9, ..."."""
    items, *shape = key["shape"]
    size = activations.bytes_of(key) / 1e9
    return (
        f"activations of {key['encoder']} after {key['layer']}, {items:,} items of "
        f"{' x '.join(map(str, shape))} {key['stored']} ({size:,.2f} GB)"
    )


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(one_line(line), file=sys.stderr)
