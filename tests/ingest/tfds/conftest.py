"""Sources on the disk, and both datasets that are built of them."""

from pathlib import Path

import pytest
from PIL import Image

from pixelrec_jax.ingest.tfds.build import build
from tests.ingest.tfds.given import CSV, INFO, sources


@pytest.fixture(scope="session")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    (folder / "x.csv").write_text(CSV, "utf-8")
    (folder / "info.csv").write_text(INFO, "utf-8")
    (folder / "images").mkdir()
    (folder / "images" / "notes.txt").write_text("no image")
    for number, name in enumerate(("a.jpg", "b.PNG", "b.webp", "c.webp", "d.jpeg", "e.png")):
        picture = Image.new("RGB", (8, 6), (40 * number, 200, 90))
        picture.save(folder / "images" / name)
    return folder


@pytest.fixture(scope="session")
def built(raw, tmp_path_factory) -> Path:
    """A folder with both configs of the own data, built in this process."""
    out = tmp_path_factory.mktemp("built")
    for config in ("own_items", "own_interactions"):
        build(config, str(out), **sources(raw))
    return out
