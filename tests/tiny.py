"""Tiny configs and in-memory data for tests."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.config import load_config
from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.items import vision
from pixelrec_jax.items.vision.vit import CLIP_RULES, VisionTransformer

ROOT = Path(__file__).parent.parent

# A small sibling of every vision encoder, with which the contracts are tested. That of CLIP is the
# tower of the golden files.
TINY = {
    "clip_vit_b32": vision.Vision(
        lambda *, remat, dtype: VisionTransformer(
            width=32, depth=3, heads=4, patch=8, mlp=64, remat=remat, dtype=dtype
        ),
        8,
        CLIP_RULES,
    ),
    "vit_toy": vision.Vision(
        lambda *, remat, dtype: VisionTransformer(
            width=16,
            depth=2,
            heads=2,
            patch=8,
            mlp=32,
            final_norm=True,
            remat=remat,
            dtype=dtype,
        ),
        8,
    ),
}


def tiny_config(words: str, dataset: Path | str = "") -> ConfigDict:
    """A config small enough to train in a test: D 16, no dropout, covers of 16 pixels."""
    config = load_config(f"{ROOT / 'configs' / 'pixelrec.py'}:{words}").unlock()
    config.width = 16
    config.user.dropout = 0.0
    config.dataset.path = str(dataset)
    if config.item.name != "id":
        config.item.image_size = 16
    config.data.workers = 0
    config.data.slot_buckets = 1  # one shape to compile
    config.train.batch_size = 16
    config.eval.batch_size = 64
    config.eval.encode_batch_size = 16
    return config


def use_tiny_encoders(monkeypatch):
    """Puts the small siblings in the place of the vision encoders."""
    for name, tiny in TINY.items():
        monkeypatch.setitem(vision.VISION, name, tiny)


def interactions_of(sequences: list[np.ndarray], num_items: int) -> Interactions:
    """Interactions in memory: sequence n is that of user n + 1; ids count from 1."""
    offsets = np.concatenate([[0, 0], np.cumsum([len(s) for s in sequences])]).astype(np.int64)
    items = np.concatenate(sequences).astype(np.int32)
    manifest = {"counts": {"items": num_items - 1, "users": len(sequences)}}
    return Interactions(offsets, items, np.arange(len(items)), manifest, Path())


@dataclass(frozen=True)
class ArrayImages:
    """An image store over uint8[N, H, W, 3] in memory; row 0 is padding."""

    pixels: np.ndarray

    def load(self, ids: np.ndarray) -> np.ndarray:
        return self.pixels[ids]
