"""Random data of the shape of PixelRec's, in memory."""

from pathlib import Path

import numpy as np

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.launch.dryrun.programs import random_items


class RandomImages:
    """A store over a few random images that all items share."""

    field = "image"
    fingerprint = ""

    def __init__(self, size: int):
        """Args: `size` is the side of the images in pixels."""
        rng = np.random.default_rng(0)
        self._pixels = rng.integers(0, 256, (64, size, size, 3)).astype(np.uint8)

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns uint8[n, size, size, 3]."""
        return self._pixels[ids % 64]


def random_interactions(users: int, items: int) -> Interactions:
    """Sequences as long as those of Pixel200K on average (20), over popular and rare items."""
    rng = np.random.default_rng(0)
    length = np.minimum(6 + rng.geometric(1 / 14, users), 434)
    ids = random_items(rng, int(length.sum()), items)
    offsets = np.concatenate([[0, 0], np.cumsum(length)]).astype(np.int64)
    manifest = {"counts": {"items": items, "users": users}}
    return Interactions(offsets, ids, np.arange(len(ids)), manifest, Path())
