"""The LMDB of the reference (generate_lmdb.py): pickled objects with the pixels of images."""

import io
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pixelrec_jax.ingest.sources.lmdb_file import HEADER, MAGIC, read_keys
from pixelrec_jax.ingest.sources.source import DamagedImageError, check_size, damaged
from pixelrec_jax.system import pickled
from pixelrec_jax.system.files import open_regular
from pixelrec_jax.system.foreign import clean_line

_MAGIC = MAGIC.to_bytes(4, "little")
_DATA = "data.mdb"  # the file in an LMDB that is a folder
_MOST_STEPS = 1000  # of the pickle of an image, which takes some 40


def is_lmdb(path: Path) -> bool:
    """Returns whether a file is an LMDB, or a folder holds one."""
    file = path / _DATA if path.is_dir() else path
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(HEADER + len(_MAGIC))[HEADER:] == _MAGIC


def _allowed(name: str) -> pickled.Call:
    if name == "__main__.LMDB_Image":
        return pickled.Call(pickled.Instance)
    raise ValueError(f"it names {name[:100]!r}")


def _pixels(value: bytes) -> np.ndarray:
    """Returns uint8[H, W, 3] from the pickle of an image; raises nearly any error."""
    check_size(len(value))
    image: Any = pickled.load(io.BytesIO(value), _allowed, limit=_MOST_STEPS)
    if type(image) is not pickled.Instance or type(image.state) is not dict:
        raise ValueError("it is another object")
    (height, width), pixels = image.state["size"], image.state["image"]
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise ValueError("its size is not that of an image")
    if type(pixels) is not bytes or len(pixels) != height * width * 3:
        raise ValueError(f"it does not have the pixels of {height} x {width}")
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


class LmdbImages:
    """The images of an LMDB; its keys are item ids.

    Memory: that of `lmdb_file.read_keys`, and one value for each thread, with the pixels it holds.
    """

    def __init__(self, path: Path):
        """Lists the keys of the LMDB at `path`; raises `UserError` if it is damaged."""
        self._file = open_regular(path / _DATA if path.is_dir() else path)
        try:
            with damaged(path, "LMDB"):
                values = read_keys(self._file)
        except BaseException:
            self.close()
            raise
        # __keys__ and __len__ hold a pickled list and number, which are not needed.
        self._values = {
            key.decode(): value
            for key, value in values.items()
            if not key.startswith(b"__") and _is_text(key)
        }
        status = os.fstat(self._file.fileno())
        self._stamp = f"{status.st_size} {status.st_mtime_ns}"

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have one image."""
        return self._values.keys()

    @property
    def ambiguous(self) -> Mapping[str, str]:
        """Empty: a key occurs once."""
        return {}

    def fingerprint(self, item_id: str) -> str:
        """Returns the size and time of the whole file: an LMDB does not record those of a value."""
        return f"{item_id} {self._stamp}"

    def read(self, item_id: str) -> np.ndarray:
        """Returns uint8[H, W, 3]; raises `ValueError` with the reason."""
        start, size = self._values[item_id]
        try:
            check_size(size)
            value = os.pread(self._file.fileno(), size, start)
            if len(value) < size:
                raise ValueError("it is gone from the LMDB")
            return _pixels(value)
        except OSError as error:
            raise DamagedImageError(error.strerror or str(error)) from None
        # For damaged pickles, nearly any exception can be raised.
        except Exception as error:
            why = clean_line(str(error), width=200)
            raise ValueError(f"not an image of the reference's LMDB ({why})") from None

    def close(self) -> None:
        """Closes the LMDB."""
        self._file.close()


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
