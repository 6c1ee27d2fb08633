"""A prepared dataset with item information, and the description of a matrix of features."""

import json
import shutil
from pathlib import Path

from pixelrec_jax.data import interactions
from pixelrec_jax.data.features import Provenance
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.data.item_info import FILE
from pixelrec_jax.ingest import item_info
from pixelrec_jax.system.files import digest


def describe(dataset: Path, csv: Path, out: Path) -> Path:
    """Copies a prepared dataset and gives it the item information of a CSV."""
    shutil.copytree(dataset, out)
    ids = load_interactions(out).item_ids()
    item_info.write_item_info(item_info.read_item_info(csv), ids, out)
    path = out / interactions.MANIFEST
    manifest = json.loads(path.read_text())
    size, sha256 = (out / FILE).stat().st_size, digest(out / FILE)
    manifest["files"][FILE] = {"sha256": sha256, "bytes": size}
    path.write_text(json.dumps(manifest))
    return out


def made_from(item_ids: str) -> Provenance:
    """The description beside a matrix of features, for the items of this digest."""
    return {
        "item_ids": item_ids,
        "images": "0" * 64,
        "encoder": "vit_toy",
        "weights": "",
        "layer": None,
        "average": False,
        "pool": "cls",
        "image_size": 16,
        "normalisation": "half",
        "shape": [1, 3],
        "dtype": "float32",
    }
