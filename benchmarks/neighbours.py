"""Measures how well pretrained features fit a catalogue: has the nearest photo the same label?

python -m benchmarks.neighbours --images=DIR --labels=CSV --item=efficientnet_lite0 [--weights=...]

The CSV has the columns item_id and label, such as the product type; --label names another column.
For every photo, the nearest other photo is found by the cosine of features (the backbone's output,
mean over its tokens). The accuracy is the share of photos with the label of their nearest photo;
photos with a label of their own do not count. Random weights and the photos themselves at 16 x 16
pixels are baselines. Nothing is trained.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import polars as pl
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from pixelrec_jax.data.images import decode, resize
from pixelrec_jax.data.types import Items
from pixelrec_jax.ingest.csv_file import open_csv
from pixelrec_jax.ingest.sources import ImageSource, open_source
from pixelrec_jax.runs import vision_encoder
from pixelrec_jax.system import program
from pixelrec_jax.system.errors import UserError, nearest, reason

_CONFIG = Path(__file__).parent.parent / "configs" / "pixelrec.py"
_BATCH = 16


def accuracy(features: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of rows with the same label as their nearest other row by cosine.

    Args:
      features: float[N, C].
      labels: [N]; rows with a unique label can be neighbours but are not counted.

    Raises:
      UserError: no two rows have the same label.
    """
    _, place, counts = np.unique(labels, return_inverse=True, return_counts=True)
    counted = counts[place] > 1
    if not counted.any():
        raise UserError(
            "no two photos have the same label; take another column or a larger --limit"
        )
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    return float(np.mean(labels[similarity.argmax(axis=1)][counted] == labels[counted]))


def encode(item: ConfigDict, images: np.ndarray) -> np.ndarray:
    """Returns the backbone's output float32[N, C] for photos uint8[N, H, W, 3]."""
    encoder = vision_encoder.pretrained(item)
    features = jax.jit(partial(vision_encoder.features, encoder.module, average=True))
    batches = []
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        full = np.resize(batch, (_BATCH, *batch.shape[1:]))  # one shape to compile
        items = Items(id=np.ones(_BATCH, np.int32), image=full)
        batches.append(np.asarray(features(encoder.variables, items))[: len(batch)])
    return np.concatenate(batches)


def read_labels(
    table: Path, source: ImageSource, *, column: str, limit: int
) -> tuple[list[str], np.ndarray]:
    """Returns at most `limit` labelled items with a photo, drawn at random, and their labels.

    Raises:
      UserError: the table cannot be read or names no item with a photo.
    """
    try:
        file = open_csv(table)
        frame = file.scan().filter(~pl.all_horizontal(pl.all().is_null())).collect()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"--labels={table}: {reason(error)}") from None
    for name in ("item_id", column):
        if name not in frame.columns:
            raise UserError(f"{table} has no column {name!r}{nearest(name, frame.columns)}")
    file.check(len(frame), frame.columns)
    frame = frame.drop_nulls(["item_id", column]).unique("item_id", maintain_order=True)
    frame = frame.filter(pl.col("item_id").is_in(list(source.ids)))
    if frame.is_empty():
        raise UserError(f"no item_id of {table} has a photo <item_id>.jpg")
    frame = frame.sample(min(limit, len(frame)), seed=0)
    return frame["item_id"].to_list(), frame[column].to_numpy()


def read_photos(source: ImageSource, item_ids: Sequence[str], size: int) -> np.ndarray:
    """Returns photos uint8[N, size, size, 3].

    Raises:
      UserError: a photo cannot be decoded.
    """
    photos = []
    for item_id in item_ids:
        try:
            photo = source.read(item_id)
            if isinstance(photo, bytes):
                photos.append(decode(photo, size))
            else:  # of an LMDB, which holds pixels
                photos.append(resize(Image.fromarray(photo), size))
        except ValueError as error:
            raise UserError(f"photo of {item_id!r}: {error}; repair or remove it") from None
    return np.stack(photos)


def _define_flags() -> None:
    program.define_path("images", None, "folder, tar or zip of <item_id>.jpg", required=True)
    program.define_path("labels", None, "CSV with the columns item_id and label", required=True)
    flags.DEFINE_string("label", "label", "name of the column of labels")
    flags.DEFINE_string("item", None, "vision encoder", required=True)
    program.define_path("weights", None, "as item.weights; default those of the config")
    flags.DEFINE_integer(
        "limit", 1200, "most photos to use; their pixels are in memory", lower_bound=2
    )


def main(_: Sequence[str]) -> None:
    """Prints one JSON line for trained weights, random weights and small photos."""
    values = flags.FLAGS
    item = vision_encoder.settings(str(_CONFIG), values.item)
    item.normalisation = "checkpoint"
    trained = item.weights if values.weights is None else values.weights
    source = open_source(Path(values.images))
    item_ids, labels = read_labels(
        Path(values.labels), source, column=values.label, limit=values.limit
    )
    photos = read_photos(source, item_ids, item.image_size)

    def report(features: np.ndarray, name: str) -> None:
        share = round(accuracy(features, labels), 4)
        print(json.dumps({"features": name, "accuracy": share, "photos": len(labels)}), flush=True)

    for weights in filter(None, (trained, "random")):
        item.weights = "" if weights == "random" else weights
        report(encode(item, photos), f"{values.item}, {weights}")
    report(read_photos(source, item_ids, 16).reshape(len(item_ids), -1) / 255, "16 x 16 pixels")


if __name__ == "__main__":
    _define_flags()
    program.run(main)
