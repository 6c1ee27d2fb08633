"""The features of a frozen vision encoder, at any layer, as a matrix by item.

The encoder has published weights, or is that of a trained run. What is written to
DATA/features.npy is what `item=features` reads.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelrec_jax.data.features import item_ids_digest, provenance
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.pipeline import ItemStore, item_batch, iterate
from pixelrec_jax.data.types import PAD, Items
from pixelrec_jax.parallel.sharding import (
    CATALOG_SPEC,
    build_mesh,
    make_global_arrays,
    make_replicated_arrays,
)
from pixelrec_jax.runs import vision_encoder
from pixelrec_jax.runs.vision_encoder import FrozenEncoder
from pixelrec_jax.system import errors, storage
from pixelrec_jax.system.config import SHIPPED
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import replaced_file

_ALL_DEVICES = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
# Each decodes a batch ahead, so their number bounds the memory on machines with many cores.
_THREADS = min(os.cpu_count() or 1, 16)


def extract(
    interactions: Interactions,
    encoder: FrozenEncoder,
    out: Path,
    *,
    layer: str | None = None,
    average: bool = False,
    dtype: str = "float32",
    batch_size: int = 64,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Writes the features of all items and, beside them, their description, which it returns.

    Args:
      interactions: the prepared dataset.
      encoder: what looks at its images.
      out: an .npy file of N rows, row n that of item n and row 0 (padding) zeros. It appears
        complete or not at all, in the place of one that is there.
      layer: see `encoder.features`.
      average: whether a row is the mean over tokens or pixels.
      dtype: of the file.
      batch_size: images encoded at once on each device.
      devices: default all.

    Raises:
      UserError: there is no such layer, no images of this size, no place to write to, or a feature
        is not finite.
    """
    if layer is not None and layer not in encoder.layers:
        known = ", ".join(encoder.layers)
        raise UserError(f"--layer={layer!r}: {encoder.item.name} has {known}")
    store = ImageStore(interactions.directory, size=encoder.item.image_size)
    mesh = build_mesh(_ALL_DEVICES, devices)
    source = _Batches(interactions.num_items, store, num_shards=mesh.size, per_shard=batch_size)
    look = partial(vision_encoder.features, encoder.module, layer=layer, average=average)
    rows = _rows(source, look, encoder.variables, mesh, dtype)
    try:
        with (
            replaced_file(provenance(out)) as beside,
            replaced_file(out) as temporary,
            temporary.open("wb") as file,
        ):
            shape = _write(file, rows, interactions.num_items, np.dtype(dtype))
            description = {
                "item_ids": item_ids_digest(interactions),
                "images": store.fingerprint,
                "encoder": encoder.item.name,
                "weights": encoder.origin,
                "layer": layer,
                "average": average,
                "pool": encoder.item.pool,
                "image_size": encoder.item.image_size,
                "normalisation": encoder.module.normalisation,
                "shape": shape,
                "dtype": dtype,
            }
            beside.write_text(json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({errors.reason(error)}); give another place with --out"
        ) from error
    return description


class _Batches:
    """Items 1 .. N - 1 in order, [G, B] at a time; the last batch is filled up with padding."""

    def __init__(self, num_items: int, store: ItemStore, *, num_shards: int, per_shard: int):
        self.num_items, self.store = num_items, store
        # No larger than needed, for small catalogues.
        self.shape = (num_shards, min(per_shard, -(-(num_items - 1) // num_shards)))

    def __len__(self) -> int:
        return -(-(self.num_items - 1) // math.prod(self.shape))

    def __getitem__(self, index: int) -> Items:
        size = math.prod(self.shape)
        ids = 1 + index * size + np.arange(size)
        ids = np.where(ids < self.num_items, ids, PAD).astype(np.int32)
        return item_batch(ids.reshape(self.shape), self.store)


def _rows(
    source: _Batches,
    look: Callable[[dict, Items], jax.Array],
    variables: dict,
    mesh: Mesh,
    dtype: str,
) -> Iterator[np.ndarray]:
    """Yields the features dtype[b, ...] of all items in order, batch by batch."""

    @jax.jit
    def encode(variables: dict, items: Items) -> jax.Array:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), items)
        return look(variables, flat).astype(dtype)

    variables = make_replicated_arrays(variables, mesh)
    with (
        iterate(
            source, start=0, stop=len(source), workers=0, threads=_THREADS, prefetch=_THREADS
        ) as batches,
        progress_bar("features", len(source)) as advance,
    ):
        for items in batches:
            ids = items.id[items.id != PAD]
            rows = np.asarray(encode(variables, make_global_arrays(items, mesh, CATALOG_SPEC)))[
                : len(ids)
            ]
            finite = np.isfinite(rows).reshape(len(ids), -1).all(axis=1)
            if not finite.all():
                raise UserError(
                    f"the features of item {ids[~finite][0]} are not finite in {dtype}; use "
                    "--dtype=float32, another layer or other weights"
                )
            yield rows
            advance(1)


def _write(
    file: BinaryIO, batches: Iterator[np.ndarray], num_items: int, dtype: np.dtype
) -> tuple[int, ...]:
    """Writes the matrix in pieces: on a full disk a memory map dies of SIGBUS."""
    shape = ()
    for rows in batches:
        if not shape:
            shape = (num_items, *rows.shape[1:])
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(np.zeros(shape[1:], dtype).data)
        file.write(np.ascontiguousarray(rows).data)
    return shape


def check(interactions: Interactions, out: Path, *, overwrite: bool) -> None:
    """Raises `UserError` if the dataset has no images or the file is there already or misnamed."""
    if interactions.manifest["images"] is None:
        raise UserError(
            f"{interactions.directory} was prepared without images; prepare it again with "
            "--images=DIR"
        )
    if out.suffix != ".npy":
        raise UserError(f"--out={out}: expected a name that ends in .npy")
    for path in (out, provenance(out)):
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists; give another --out, or --overwrite to replace it")


def choose_encoder(
    interactions: Interactions,
    *,
    item: str | None,
    workdir: str | None,
    config: str = SHIPPED,
    changes: dict[str, Any] | None = None,
) -> FrozenEncoder:
    """Returns the encoder that the flags of the same names describe.

    Args:
      interactions: the dataset that it is for.
      item: a vision encoder.
      workdir: or the folder of a run.
      config: what has the settings of `item`, as `load_config` takes it, without words.
      changes: other values of them.

    Raises:
      UserError: both or none are given, or it cannot be had.
    """
    if (item is None) == (workdir is None):
        raise UserError("give --item=NAME for published weights, or --workdir=DIR for a run")
    changes = changes or {}
    if workdir is not None:
        if changes:
            raise UserError(f"--{min(changes)} goes with --item; a run has settings of its own")
        return vision_encoder.trained(storage.path(workdir))
    assert item is not None, "one of the two is given"
    settings = vision_encoder.settings(config, item)
    settings.normalisation = "checkpoint"  # what frozen weights were trained with
    settings.image_size = interactions.manifest["images"]["size"] or settings.image_size
    settings.update(changes)
    if not settings.weights and "weights" not in changes:
        raise UserError(f"{item} has no published weights; give --weights=FILE, or --workdir=DIR")
    return vision_encoder.pretrained(settings)
