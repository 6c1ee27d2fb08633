"""Cached activations: what frozen blocks of a vision encoder make of every item, in files.

A folder holds the activations of one key, and a file some rows of them: it is there complete or not
at all. So a program that was killed continues with the files that are missing.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from pixelrec_jax.data import copies
from pixelrec_jax.data.watched_file import WatchedFile
from pixelrec_jax.system import storage
from pixelrec_jax.system.arrays import map_array
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.files import digest
from pixelrec_jax.system.schema import Count, Document, Sha256, record
from pixelrec_jax.system.temporary import temporary_file

FOLDER = "activations"  # in the folder of a dataset, or in the user's cache
# At most, of one file, unless a row is larger; files of more than half of it are mapped.
_FILE_BYTES = 1 << 27
_Length = Annotated[int, Field(ge=1, lt=2**31)]
_NAME = re.compile(r"(\d{5,})-([0-9a-f]{64})\.npy")
_THREADS = min(os.cpu_count() or 1, 8)  # which read files to check them


@record
class Key(TypedDict):
    """All that activations depend on; where one value differs, they are others.

    Attributes:
      images: digest of the images.
      weights: digest of the weights and running statistics of the frozen blocks.
      program: digest of the program from pixels to activations, as it is given to the compiler.
      encoder, layer: the vision encoder, and the last of its frozen blocks.
      image_size, normalisation, computed: of the images, and the type of computation.
      stored: the type of the files, float32 or bfloat16.
      shape: of all rows: those of the items by index, and last that of the mask item.
    """

    images: Sha256
    weights: Sha256
    program: Sha256
    encoder: str
    layer: str
    image_size: Count
    normalisation: str
    computed: str
    stored: Literal["float32", "bfloat16"]
    shape: Annotated[list[_Length], Field(min_length=2)]


KEY = Document("key.json", Key, "remove the folder {folder}; its activations are computed again")


def folder_name(key: Key) -> str:
    """Returns the name of the folder of a key, as in "clip_vit_b32-block_9-0123456789abcdef"."""
    content = json.dumps(key, sort_keys=True).encode()
    return f"{key['encoder']}-{key['layer']}-{hashlib.sha256(content).hexdigest()[:16]}"


def roots(given: str, directory: Path | None) -> list[Path]:
    """Returns the folders that may hold activations of a dataset; new ones are made in the last.

    Args:
      given: `item.cache_dir`.
      directory: the local folder of the dataset; None for the user's cache alone.

    Raises:
      UserError: the given folder is a URL.
    """
    if storage.is_remote(given):
        raise UserError(
            f"item.cache_dir={given} is not on the local disk, from which activations are read at "
            "random; give a local folder, or mount the bucket and give that folder"
        )
    if given:
        return [Path(storage.expand_user(given))]
    users = storage.cache() / FOLDER
    if directory is None or copies.origin(directory) is not None:
        return [users]
    beside = directory / FOLDER
    writable = os.access(beside if beside.exists() else directory, os.W_OK)
    return [users, beside] if writable else [beside, users]


def dtype_of(key: Key) -> np.dtype:
    """Returns the type of the activations."""
    return jnp.dtype(key["stored"])


def bytes_of(key: Key, rows: int | None = None) -> int:
    """Returns the size of the activations in bytes, of all rows or of some."""
    count, *shape = key["shape"]
    return (count if rows is None else rows) * math.prod(shape) * dtype_of(key).itemsize


def describe(key: Key) -> str:
    """Returns what activations are and their size, as in "activations after block_9, ..."."""
    items, *shape = key["shape"]
    return (
        f"activations of {key['encoder']} after {key['layer']}, {items:,} items of "
        f"{' x '.join(map(str, shape))} {key['stored']} ({bytes_of(key) / 1e9:,.2f} GB)"
    )


def rows_per_file(key: Key) -> int:
    """Returns how many rows a file holds, a power of two; the last file may hold fewer."""
    return 1 << max(0, (_FILE_BYTES // bytes_of(key, 1)).bit_length() - 1)


def num_files(key: Key) -> int:
    """Returns how many files hold all rows."""
    return -(-key["shape"][0] // rows_per_file(key))


def rows_of_file(key: Key, number: int) -> range:
    """Returns the rows in the file of a number."""
    size = rows_per_file(key)
    return range(number * size, min((number + 1) * size, key["shape"][0]))


def files(folder: Path) -> dict[int, Path]:
    """Returns the files in a folder by number; {} if the folder does not exist."""
    names = sorted(path.name for path in folder.glob("*.npy"))
    return {int(found[1]): folder / found[0] for found in map(_NAME.fullmatch, names) if found}


def folders_in(root: Path) -> list[Path]:
    """Returns the folders of activations in a folder, which need not exist."""
    return sorted(path.parent for path in root.glob(f"*/{KEY.name}"))


def missing(folder: Path, key: Key) -> list[int]:
    """Returns the numbers of the files that a folder lacks."""
    return sorted(set(range(num_files(key))) - files(folder).keys())


def damaged(paths: Iterable[Path]) -> list[Path]:
    """Returns those of these files that do not hold what was written; all of them are read."""

    def is_whole(path: Path) -> bool:
        return path.name.endswith(f"-{digest(path)}.npy")

    paths = list(paths)
    with ThreadPoolExecutor(_THREADS) as threads:
        whole = list(threads.map(is_whole, paths))
    return [path for path, is_right in zip(paths, whole, strict=True) if not is_right]


def create(folder: Path, key: Key, *, rows: int) -> None:
    """Creates a folder to which `rows` rows will be written.

    Raises:
      UserError: the folder cannot be written, or the disk does not have the space.
    """
    with _one_line_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        needed, free = bytes_of(key, rows), shutil.disk_usage(folder).free
        if needed > free:
            raise UserError(
                f"{bytes_of(key) / 1e9:,.2f} GB of activations do not fit in {folder}: "
                f"{needed / 1e9:,.2f} GB are missing and {free / 1e9:,.2f} GB are free; name "
                "another folder with item.cache_dir, halve them with item.cache_dtype=bfloat16, or "
                "take item.source=stream"
            )
        KEY.write(folder / KEY.name, key)


def write(folder: Path, number: int, rows: np.ndarray) -> None:
    """Writes a file, complete or not at all; its name has the digest of its content.

    Raises:
      UserError: the file cannot be written.
    """
    with _one_line_errors(folder), temporary_file(folder) as temporary:
        with temporary.open("wb") as file:
            np.save(file, _as_plain(rows), allow_pickle=False)
        temporary.replace(folder / f"{number:05}-{digest(temporary)}.npy")


@contextmanager
def _one_line_errors(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"activations cannot be written to {folder} ({reason(error)}); complete files there "
            "stay, and the same command continues with them; free the disk, name another folder "
            "with item.cache_dir, or take item.source=stream"
        ) from error


def _as_plain(rows: np.ndarray) -> np.ndarray:
    """Returns rows in a type that numpy's files know: bfloat16 as its bits."""
    return rows.view(np.uint16) if rows.dtype == jnp.bfloat16 else rows


class ActivationStore:
    """The activations of items by index, mapped into memory.

    Threads may share a store. It can be pickled: each process maps the files itself. Memory: the
    pages that are read, which all processes of the machine share.
    """

    field = "activation"  # of `Items`

    def __init__(self, folder: Path, key: Key):
        """Maps the files of a complete folder, which hold what was written.

        Raises:
          UserError: a file is missing.
        """
        if missing(folder, key):
            raise UserError(f"activations in {folder} are gone; start the same command again")
        paths = files(folder)
        self._folder, self._key = folder, key
        self._rows_per_file = rows_per_file(key)
        self._maps = [_map(paths[n], key, len(rows_of_file(key, n))) for n in range(num_files(key))]
        self.watched: Sequence[WatchedFile] = tuple(
            WatchedFile(path, path.stem.partition("-")[2]) for path in paths.values()
        )

    def __reduce__(self):
        return partial(ActivationStore, self._folder), (self._key,)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the activations depend on."""
        return hashlib.sha256(json.dumps(self._key, sort_keys=True).encode()).hexdigest()

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns the rows of ids int[n]; also padding and the mask item have one."""
        rows = np.empty((len(ids), *self._key["shape"][1:]), dtype_of(self._key))
        number, row = np.divmod(ids, self._rows_per_file)
        for place, (n, at) in enumerate(zip(number.tolist(), row.tolist(), strict=True)):
            rows[place] = self._maps[n][at]
        return rows


def _map(path: Path, key: Key, count: int) -> np.ndarray:
    dtype, shape = dtype_of(key), (count, *key["shape"][1:])
    try:
        array = map_array(path)
    except ValueError as error:
        raise UserError(f"{path} is not an .npy file ({reason(error)}); remove it") from None
    if array.shape != shape or array.dtype != _as_plain(np.empty(0, dtype)).dtype:
        raise UserError(
            f"{path} holds {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}; remove "
            "it, and start the same command again"
        )
    return np.asarray(array.view(dtype))
