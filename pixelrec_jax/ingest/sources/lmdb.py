"""The reference's LMDB: pickled objects with the pixels of images (its generate_lmdb.py)."""

import io
import pickle
from collections.abc import Collection
from pathlib import Path

import lmdb
import numpy as np

from pixelrec_jax.system.errors import UserError

_MAGIC = bytes.fromhex("dec0efbe")
_PAGE_HEADER = 16  # bytes before the magic number of an LMDB's first page
_DATA = "data.mdb"  # of an LMDB that is a folder


def is_lmdb(path: Path) -> bool:
    """Returns whether a file is an LMDB, or a folder holds one."""
    file = path / _DATA if path.is_dir() else path
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(_PAGE_HEADER + len(_MAGIC))[_PAGE_HEADER:] == _MAGIC


class _Image:
    """Stands for the reference's class: `size` (H, W), `channels`, `image` (pixels as bytes)."""


class _Unpickler(pickle.Unpickler):
    """Makes objects of that one class, of plain values, and nothing else."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) == ("__main__", "LMDB_Image"):
            return _Image
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


class LmdbImages:
    """Its images; keys are item ids."""

    def __init__(self, path: Path):
        """Lists the keys of the LMDB at `path`; raises `UserError` if it is damaged."""
        file = path / _DATA if path.is_dir() else path
        try:
            self._env = lmdb.open(
                str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False
            )
            pages, size = self._env.info()["last_pgno"] + 1, self._env.stat()["psize"]
            if (found := file.stat().st_size) < pages * size:  # reading on would kill the process
                self.close()
                raise UserError(
                    f"--images={path} is no whole LMDB: {found:,} of {pages * size:,} bytes"
                )
            with self._env.begin() as transaction, transaction.cursor() as cursor:
                keys = [bytes(key) for key in cursor.iternext(keys=True, values=False)]
        except lmdb.Error as error:
            raise UserError(f"--images={path} is no whole LMDB: {error}") from None
        # __keys__ and __len__ are pickled lists and numbers, and not needed.
        keys = [key for key in keys if not key.startswith(b"__") and _is_text(key)]
        self._ids = {key.decode(): key for key in keys}
        status = file.stat()
        self._stamp = f"{status.st_size} {status.st_mtime_ns}"

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have an image."""
        return self._ids.keys()

    def fingerprint(self, item_id: str) -> str:
        """Size and time of the file: an LMDB knows none of its values."""
        return f"{item_id} {self._stamp}"

    def read(self, item_id: str) -> np.ndarray:
        """Returns uint8[H, W, 3]; raises `ValueError` with the reason."""
        try:
            with self._env.begin() as transaction:
                value = transaction.get(self._ids[item_id])
            if value is None:
                raise ValueError("it is gone from the LMDB")
            image = _Unpickler(io.BytesIO(value)).load()
            height, width = image.size
            return np.frombuffer(image.image, np.uint8).reshape(height, width, 3)
        # Damaged pickles raise nearly anything.
        except Exception as error:
            raise ValueError(f"no image of the reference's LMDB ({error})") from None

    def close(self) -> None:
        """Closes the LMDB."""
        self._env.close()


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
