"""Writes the features of a frozen vision encoder, at any layer, as a matrix with a row per item.

The encoder has published weights or those of a trained run. `item=features` reads the default
file, DATA/features.npy.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.configs.loading import SHIPPED
from pixelrec_jax.data.features import PROVENANCE, Provenance, item_ids_digest, provenance
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.parallel.sharding import build_mesh
from pixelrec_jax.runs import vision_encoder
from pixelrec_jax.runs.encoding import encode_in_order
from pixelrec_jax.runs.vision_encoder import FrozenEncoder
from pixelrec_jax.system import errors, storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import replaced_file
from pixelrec_jax.system.redact import redact

_ALL_DEVICES = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})


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
) -> Provenance:
    """Writes the features of all items, and a description beside them, which it returns.

    Args:
      interactions: the prepared dataset.
      encoder: the encoder that reads its images.
      out: the .npy file to write, of N rows: row n is item n, and row 0 (padding) is zero. It
        appears complete or not at all and replaces an existing file.
      layer: as in `vision_encoder.features`.
      average: whether a row is the mean over tokens or pixels.
      dtype: the type of the file, float32 or float16.
      batch_size: number of images that each device encodes at once.
      devices: the devices to use; by default all.

    Raises:
      UserError: the layer is unknown, the dataset has no images of this size, the file cannot be
        written, or a feature is not finite.
    """
    if layer is not None and layer not in encoder.layers:
        raise UserError(
            f"--layer={layer} is not a layer of {encoder.item.name} here; give one of "
            f"{', '.join(encoder.layers)}"
        )
    store = ImageStore(interactions.directory, size=encoder.item.image_size)
    mesh = build_mesh(_ALL_DEVICES, devices)
    rows = encode_in_order(
        partial(vision_encoder.features, encoder.module, layer=layer, average=average),
        encoder.variables,
        np.arange(1, interactions.num_items, dtype=np.int32),
        store,
        mesh=mesh,
        batch_size=batch_size,
        dtype=dtype,
        what="features",
        remedy="use --dtype=float32, another layer or other weights",
    )
    try:
        with replaced_file(out) as temporary, temporary.open("wb") as file:
            shape = _write(file, rows, interactions.num_items, np.dtype(dtype))
        description: Provenance = {
            "item_ids": item_ids_digest(interactions),
            "images": store.fingerprint,
            "encoder": encoder.item.name,
            "weights": redact(encoder.origin),
            "layer": layer,
            "average": average,
            "pool": encoder.item.pool,
            "image_size": encoder.item.image_size,
            "normalisation": encoder.module.normalisation,
            "shape": list(shape),
            "dtype": dtype,
        }
        PROVENANCE.write(provenance(out), description)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({errors.reason(error)}); give another place with --out"
        ) from error
    return description


def _write(
    file: BinaryIO, batches: Iterator[np.ndarray], num_items: int, dtype: np.dtype
) -> tuple[int, ...]:
    """Writes the matrix batch by batch, since a full disk kills a memory map with SIGBUS."""
    shape = ()
    for rows in batches:
        if not shape:
            shape = (num_items, *rows.shape[1:])
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(np.zeros(shape[1:], dtype).data)
        file.write(np.ascontiguousarray(rows).data)
    return shape


def check_output(interactions: Interactions, out: Path, *, overwrite: bool) -> None:
    """Raises `UserError` if the dataset has no images, or `out` is misnamed or exists."""
    if interactions.manifest["images"] is None:
        raise UserError(
            f"{interactions.directory} was prepared without images; prepare it again with "
            "--images=DIR"
        )
    if out.suffix != ".npy":
        raise UserError(f"--out={out} does not end in .npy; give a file name that does")
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
      interactions: the dataset to extract features of.
      item: name of a vision encoder with published weights, or None.
      workdir: folder of a run, or None.
      config: name of the config with the settings of `item`, without words.
      changes: other values for these settings.

    Raises:
      UserError: both or none of `item` and `workdir` are given, or the encoder cannot be built.
    """
    if (item is None) == (workdir is None):
        given = "neither --item nor --workdir is" if item is None else "--item and --workdir are"
        raise UserError(
            f"{given} given; give --item=NAME for published weights, or --workdir=DIR for a run"
        )
    changes = changes or {}
    if workdir is not None:
        if changes:
            raise UserError(
                f"--{min(changes)} is given with --workdir, but a run has its own settings; leave "
                "it out, or give --item"
            )
        return vision_encoder.trained(storage.path(workdir))
    assert item is not None, "one of the two is given"
    settings = vision_encoder.settings(config, item)
    settings.normalisation = "checkpoint"  # as frozen weights were trained
    images = interactions.manifest["images"]
    settings.image_size = (images and images["size"]) or settings.image_size
    settings.update(changes)
    if not settings.weights and "weights" not in changes:
        raise UserError(f"{item} has no published weights; give --weights=FILE, or --workdir=DIR")
    return vision_encoder.pretrained(settings)
