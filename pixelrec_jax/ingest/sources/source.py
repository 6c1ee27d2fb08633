"""What a source of images is, and what those that hold files have in common."""

from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Protocol, TypeVar

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # The first that exists is taken.
# Of a file. Compressed it is far larger than any picture that Pillow's own limit lets pass.
LARGEST = 256 * 2**20


class DamagedImageError(ValueError):
    """An image could not be read, which may be otherwise the next time."""

    def __init__(self, reason: str):
        super().__init__(f"cannot be read ({reason})")


Place = TypeVar("Place")


class ImageSource(Protocol):
    """Images by item id; `read` may be called from several threads at once.

    Attributes:
      ids: the item ids that have an image.
    """

    @property
    def ids(self) -> Collection[str]:
        """See above."""
        ...

    def fingerprint(self, item_id: str) -> str:
        """Returns what changes when the image does, without reading it."""
        ...

    def read(self, item_id: str) -> bytes | np.ndarray:
        """Returns an encoded file or pixels uint8[H, W, 3]; raises `ValueError` with the reason."""
        ...

    def close(self) -> None:
        """Closes what is open."""
        ...


def by_item_id(places: dict[str, Place]) -> dict[str, Place]:
    """Returns item id -> place for file name -> place; other files than images are left out.

    An item with files of several suffixes has the first of `SUFFIXES`; cameras write .JPG.
    """
    found: dict[str, tuple[int, str]] = {}
    for name in places:
        path = PurePosixPath(name)
        if (suffix := path.suffix.lower()) in SUFFIXES:
            candidate = (SUFFIXES.index(suffix), name)
            found[path.stem] = min(candidate, found.get(path.stem, candidate))
    return {item_id: places[name] for item_id, (_, name) in found.items()}


def check_size(size: int) -> None:
    """Raises `ValueError` for a file that is too large to be read."""
    if size > LARGEST:
        raise ValueError(f"too large ({size:,} bytes)")
