"""Interactions of a prepared dataset.

In this module U users and N items are counted without padding: index 0 is padding, users are 1..U
and items 1..N.
"""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl

from pixelrec_jax.data import copies
from pixelrec_jax.data.manifest import (
    ANY_VERSION,
    DOCUMENT,
    IMAGES,
    MANIFEST,
    SCHEMA_VERSION,
    Manifest,
)
from pixelrec_jax.data.watched_file import WatchedFile
from pixelrec_jax.system.arrays import map_array
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.faults import is_of_machine
from pixelrec_jax.system.files import check_folder, digest
from pixelrec_jax.system.frames import POLARS_ERRORS, scan_ipc

# int32[items]: the record number of item i + 1, -1 for a grey image
RECORD_NUMBERS = "image_rows.npy"
ITEM_INFO = "item_info.arrow"
_NEEDED = ("offsets.npy", "items.npy", "timestamps.npy", "item_ids.arrow", "user_ids.arrow")
# Files whose damage training would not notice, or only at its end; not all datasets have the last.
_VERIFIED = (*_NEEDED, RECORD_NUMBERS, ITEM_INFO)


@dataclasses.dataclass(frozen=True)
class Interactions:
    """A prepared dataset; large arrays are memory-mapped.

    Attributes:
      offsets: int64[U + 2]; offsets[u]:offsets[u + 1] is the slice of the two columns below that
        holds the interactions of user u, in order of time.
      items: int32[interactions], the column of items 1..N.
      timestamps: int64[interactions], the column of times in the unit that the manifest names.
      manifest: the content of manifest.json.
      directory: the local folder of the dataset.
      watched: its files, except images.
    """

    offsets: np.ndarray
    items: np.ndarray
    timestamps: np.ndarray
    manifest: Manifest
    directory: Path
    watched: tuple[WatchedFile, ...] = ()

    @property
    def num_users(self) -> int:
        """Number of users including padding 0."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """Number of items including padding 0."""
        return self.manifest["counts"]["items"] + 1

    def item_ids(self) -> pl.Series:
        """Returns the original item ids, read from disk; entry i is item i + 1."""
        return _read_column(self.directory / "item_ids.arrow", "item_id")

    def user_ids(self) -> pl.Series:
        """Returns the original user ids, read from disk; entry i is user i + 1."""
        return _read_column(self.directory / "user_ids.arrow", "user_id")

    def __reduce__(self):
        # A pickled memory map is a full copy: workers map the files themselves instead.
        return load_interactions, (self.directory, False)


def _read_column(path: Path, name: str) -> pl.Series:
    try:
        return scan_ipc(path).select(name).collect()[name]
    except (OSError, *POLARS_ERRORS) as error:
        if is_of_machine(error):
            raise
        raise damaged(path.parent, f"{path.name}: {reason(error)}") from None


def load_interactions(directory: str | Path, verify: bool = True) -> Interactions:
    """Opens a prepared dataset; for a URL, its local copy (see `copies`).

    With `verify` the hashes of the files are compared, at about a gigabyte a second. The images of
    a URL are copied once they are needed.

    Raises:
      UserError: it is not a prepared dataset, has another schema version, or is damaged.
    """
    directory = copies.local_folder(directory, MANIFEST)
    manifest = read_manifest(directory, images=copies.origin(directory) is None)
    names = [name for name in _VERIFIED if name in manifest["files"]]
    sha256 = {name: manifest["files"][name]["sha256"] for name in names}
    watched = tuple(WatchedFile(directory / name, sha256[name]) for name in names)
    for name in names if verify else ():
        if digest(directory / name) != sha256[name]:
            raise damaged(directory, f"{name} has other content than when it was written")
    arrays = {}
    for name in ("offsets", "items", "timestamps"):
        try:
            arrays[name] = map_array(directory / f"{name}.npy")
        except (OSError, ValueError) as error:
            if is_of_machine(error):
                raise
            raise damaged(directory, f"{name}.npy: {error}") from None
    counts = manifest["counts"]
    rows = counts["interactions"]
    expected = {
        "offsets": (np.int64, counts["users"] + 2),
        "items": (np.int32, rows),
        "timestamps": (np.int64, rows),
    }
    for name, (dtype, length) in expected.items():
        array = arrays[name]
        if array.dtype != dtype or array.shape != (length,):
            wanted = f"{np.dtype(dtype)}[{length}]"
            got = f"{array.dtype}{list(array.shape)}"
            raise damaged(directory, f"{name}.npy holds {got}, manifest.json says {wanted}")
    offsets = arrays["offsets"]
    if offsets[0] or offsets[1] or offsets[-1] != rows:
        raise damaged(directory, f"offsets.npy does not run from 0, 0 to {rows}")
    return Interactions(**arrays, manifest=manifest, directory=directory, watched=watched)


def read_manifest(directory: Path, *, images: bool = True) -> Manifest:
    """Returns manifest.json, after a check of the schema version and of every file's size.

    A copy of a remote dataset is completed first. Without `images` the image shards are neither
    copied nor checked.
    """
    path = directory / MANIFEST
    try:
        version = ANY_VERSION.read(path)["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{str(directory)!r} has schema version {version}, but this program reads version "
                f"{SCHEMA_VERSION}; prepare the dataset again"
            )
        manifest = DOCUMENT.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{str(directory)!r} is not a prepared dataset (no {MANIFEST}); run "
            f"pixelrec prepare --interactions=X.csv --images=DIR --out={directory}, or name "
            "another folder"
        ) from None
    try:
        check_folder(directory)
    except OSError as error:
        raise damaged(directory, f"{error.filename}: {error.strerror}") from None
    needed = {
        **dict.fromkeys(_NEEDED, True),
        RECORD_NUMBERS: manifest["images"] is not None,
        ITEM_INFO: "with_item_info" in manifest["source"],
    }
    for name in needed:
        if needed[name] and name not in manifest["files"]:
            raise DOCUMENT.damaged(path, f"has no field files[{name!r}]")
    files = {
        name: file
        for name, file in manifest["files"].items()
        if images or not name.startswith(f"{IMAGES}/")
    }
    copies.complete(directory, files)
    for name, file in files.items():
        path = directory / name
        size = path.stat().st_size if path.is_file() else None
        if size != file["bytes"]:
            found = "is missing" if size is None else f"has {size:,} bytes"
            raise damaged(directory, f"{name} {found}, manifest.json says {file['bytes']:,} bytes")
    return manifest


def damaged(directory: Path, problem: str) -> UserError:
    """Returns the error for a prepared dataset that is not as it was written."""
    return UserError(
        f"the prepared dataset {str(directory)!r} is damaged: {problem}; copy or prepare it again"
    )
