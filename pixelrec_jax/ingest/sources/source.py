"""The interface of image sources, and functions for sources of image files."""

import errno
import tarfile
import zipfile
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol, TypeVar

import numpy as np

from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.foreign import clean_line

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # the first that exists is taken
# Bytes of a file; a compressed image within Pillow's own limit is far smaller.
LARGEST = 256 * 2**20


class DamagedImageError(ValueError):
    """An image could not be read; the next try may succeed."""

    def __init__(self, reason: str):
        super().__init__(f"cannot be read ({reason})")


Place = TypeVar("Place")


class ImageSource(Protocol):
    """Images by item id; `read` may be called from several threads at once.

    Attributes:
      ids: the item ids that have one image.
      ambiguous: the item ids that have several, with a line that says where; it is an error only
        for an item that is needed.
    """

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have one image."""
        ...

    @property
    def ambiguous(self) -> Mapping[str, str]:
        """A line on each item id that has several images: where they are, and what to do."""
        ...

    def fingerprint(self, item_id: str) -> str:
        """Returns a text that changes when the image changes, without reading the image."""
        ...

    def read(self, item_id: str) -> bytes | np.ndarray:
        """Returns an encoded file or pixels uint8[H, W, 3]; raises `ValueError` with the reason."""
        ...

    def close(self) -> None:
        """Closes all open files."""
        ...


def index(
    places: Mapping[str, Place], where: str | Path
) -> tuple[dict[str, Place], dict[str, str]]:
    """Returns item id -> place, and a line on each item that has images in two folders.

    Args:
      places: what is read, by path below the root of a source. Only images are looked at.
      where: the source, for the lines.
    """
    folders: dict[str, PurePosixPath] = {}
    images: dict[str, Place] = {}
    ambiguous: dict[str, str] = {}
    for name, place in places.items():
        path = PurePosixPath(name)
        if not is_image(path):
            continue
        other = folders.setdefault(path.stem, path)
        if other.parent != path.parent:
            ambiguous[path.stem] = (
                f"--images={where} has '{other}' and '{path}', one item twice; keep one"
            )
        images[path.name] = place
    found = by_item_id(images)
    return {item_id: x for item_id, x in found.items() if item_id not in ambiguous}, ambiguous


def by_item_id(places: Mapping[str, Place]) -> dict[str, Place]:
    """Returns item id -> place from file name -> place; files that are not images are left out.

    If an item has files with several suffixes, the first of `SUFFIXES` is taken. The case of a
    suffix does not matter, since cameras write .JPG.
    """
    found: dict[str, tuple[int, str]] = {}
    for name in places:
        path = PurePosixPath(name)
        if is_image(path):
            candidate = (SUFFIXES.index(path.suffix.lower()), name)
            found[path.stem] = min(candidate, found.get(path.stem, candidate))
    return {item_id: places[name] for item_id, (_, name) in found.items()}


def is_image(path: PurePosixPath) -> bool:
    """Returns whether a file is an image by its name."""
    return path.suffix.lower() in SUFFIXES


@contextmanager
def damaged(path: Path, kind: str) -> Generator[None]:
    """Raises `UserError`, which names the source, if a file of `kind` has other bytes.

    For damaged bytes libraries raise nearly anything. A failure of the disk stays an `OSError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # A position that no file has is EINVAL; BadZipFile and TarError have no number.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        said = (
            isinstance(error, (tarfile.TarError, zipfile.BadZipFile)) or type(error) is ValueError
        )
        why = clean_line(str(error), width=300) if said else reason(error)
        raise UserError(
            f"--images={path} is not a complete {kind} ({why}); copy it again"
        ) from None


def check_size(size: int) -> None:
    """Raises `ValueError` if a file is too large."""
    if size > LARGEST:
        raise ValueError(f"too large ({size:,} bytes)")
