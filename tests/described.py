"""A prepared dataset with item information, for the tests of what shows it."""

import json
import shutil
from pathlib import Path

from pixelrec_jax.data import interactions
from pixelrec_jax.data.item_info import FILE
from pixelrec_jax.ingest import item_info


def describe(dataset: Path, csv: Path, out: Path) -> Path:
    """Copies a prepared dataset and gives it the item information of a CSV."""
    shutil.copytree(dataset, out)
    ids = interactions.load(out).item_ids()
    item_info.write(item_info.read_csv(csv), ids, out)
    path = out / interactions.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["files"][FILE] = {"bytes": (out / FILE).stat().st_size}
    path.write_text(json.dumps(manifest))
    return out
