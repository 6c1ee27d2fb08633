"""Random data in memory, with the shape of PixelRec."""

from pathlib import Path
from typing import cast

import numpy as np

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.manifest import Manifest
from pixelrec_jax.launch.dryrun.programs import random_items


class RandomImages:
    """A store with a few random images that all items share."""

    field = "image"
    fingerprint = ""
    watched = ()

    def __init__(self, size: int):
        """Makes a store of images with `size` x `size` pixels."""
        rng = np.random.default_rng(0)
        self._pixels = rng.integers(0, 256, (64, size, size, 3)).astype(np.uint8)

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns uint8[n, size, size, 3]."""
        return self._pixels[ids % 64]


def random_interactions(users: int, items: int) -> Interactions:
    """Returns sequences with the mean length of Pixel200K (20), of popular and rare items."""
    rng = np.random.default_rng(0)
    length = np.minimum(6 + rng.geometric(1 / 14, users), 434)
    ids = random_items(rng, int(length.sum()), items)
    offsets = np.concatenate([[0, 0], np.cumsum(length)]).astype(np.int64)
    manifest = cast(Manifest, {"counts": {"items": items, "users": users}})  # of data in memory
    return Interactions(offsets, ids, np.arange(len(ids)), manifest, Path())
