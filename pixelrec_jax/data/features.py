"""Frozen matrices with one row for each item: features of an encoder, or semantic ids."""

import hashlib
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from pixelrec_jax.data import copies
from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.watched_file import WatchedFile
from pixelrec_jax.system import storage
from pixelrec_jax.system.arrays import map_array
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.faults import is_of_machine
from pixelrec_jax.system.schema import Count, Document, Sha256, record

_BYTES_IN_FINGERPRINT = 1 << 26  # of a larger matrix, evenly spaced rows are hashed


@record
class Provenance(TypedDict):
    """What a matrix of features was made from: the items, their images, and the encoder."""

    item_ids: str
    images: Sha256
    encoder: str
    weights: str
    layer: str | None
    average: bool
    pool: str
    image_size: Count
    normalisation: str
    shape: list[Count]
    dtype: str


PROVENANCE = Document(
    "features.json", Provenance, "extract the features again, or remove it if they are your own"
)


def provenance(path: Path) -> Path:
    """Returns the path of the file beside a matrix that says what the matrix was made from."""
    return path.with_suffix(".json")


def locate(name: str, directory: Path) -> Path:
    """Returns the local file that `item.path` names: a URL, or a path in the dataset's folder.

    A remote file is copied to the cache, together with its provenance.
    """
    name, url = storage.expand_user(name), copies.origin(directory)
    if not storage.is_remote(name):
        within = url is not None and not Path(name).is_absolute()
        name = f"{url}/{name}" if within else str(directory / name)
    return storage.local_file(name, beside=".json")


class FeatureStore:
    """The rows of an .npy file by item index, read on demand; row 0 is padding.

    Threads may share a store. It can be pickled: each process maps the file itself. Memory: the
    rows that are read.
    """

    field = "feature"  # of `Items`

    def __init__(self, path: Path, interactions: Interactions, *, codes: int = 0):
        """Opens and checks the file.

        Args:
          path: the .npy file.
          interactions: the dataset that the items belong to.
          codes: 0 for features, real or whole numbers; otherwise the file holds semantic ids
            0 .. codes - 1.

        Raises:
          UserError: the file is missing, holds other numbers, or belongs to other items.
        """
        self._path, self._interactions, self._codes = path, interactions, codes
        self._matrix = self._open(path, interactions.num_items, codes)
        self.watched = (WatchedFile(path, self.fingerprint, lambda p: _fingerprint(map_array(p))),)
        if provenance(path).exists():
            _check_items(path, interactions)
        if not codes and self._matrix[0].any():
            raise UserError(
                f"row 0 of {path} holds numbers other than zero, but it is the row of padding; "
                "write item n to row n, in the order of item_ids.arrow"
            )
        if codes and (self._matrix.min() < 0 or self._matrix.max() >= codes):
            raise UserError(
                f"{path} holds codes {self._matrix.min()} to {self._matrix.max()}; expected 0 to "
                f"item.codebook_size - 1 = {codes - 1}; set item.codebook_size, or name another "
                "file with item.path"
            )

    def __reduce__(self):
        return partial(FeatureStore, codes=self._codes), (self._path, self._interactions)

    @staticmethod
    def _open(path: Path, num_items: int, codes: int) -> np.ndarray:
        try:
            matrix = map_array(path)
        except FileNotFoundError:
            advice = "" if codes else "make it with pixelrec extract, or "
            raise UserError(
                f"{path} does not exist; {advice}name another with item.path (relative to the "
                "folder of the dataset)"
            ) from None
        except OSError as error:
            if is_of_machine(error):
                raise
            raise UserError(
                f"{path} cannot be read ({error.strerror}); name an .npy file with item.path"
            ) from None
        except ValueError as error:
            raise UserError(
                f"{path} is not a complete .npy file of numbers ({error}); write it with numpy.save"
            ) from None
        whole = np.issubdtype(matrix.dtype, np.integer)
        if not whole and (codes or not np.issubdtype(matrix.dtype, np.floating)):
            raise UserError(
                f"{path} holds {matrix.dtype}; expected {'whole' if codes else 'real'} numbers; "
                "name another file with item.path"
            )
        dimensions = matrix.ndim == 2 if codes else matrix.ndim >= 2
        if not dimensions or len(matrix) != num_items or 0 in matrix.shape:
            raise UserError(
                f"{path} has shape {list(matrix.shape)}; expected [{num_items}, "
                f"{'codes' if codes else '...'}], a row for padding and one for each of the "
                f"{num_items - 1} items; name a file of this dataset with item.path"
            )
        return matrix

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the matrix; of a large matrix, a hash of evenly spaced rows."""
        return _fingerprint(self._matrix)

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns float32[n, ...] or int32[n, ...] for ids int[n]; 0 for ids above all items."""
        is_item = ids < len(self._matrix)
        rows = np.zeros(
            (len(ids), *self._matrix.shape[1:]), np.int32 if self._codes else np.float32
        )
        rows[is_item] = self._matrix[ids[is_item]]
        if not np.isfinite(rows).all():
            bad = ids[~np.isfinite(rows.reshape(len(ids), -1)).all(axis=1)][0]
            raise UserError(
                f"row {bad} of {self._path} holds numbers that are not finite; write the file "
                "again, or name another with item.path"
            )
        return rows


def _fingerprint(matrix: np.ndarray) -> str:
    content = hashlib.sha256(str((matrix.shape, matrix.dtype)).encode())
    for row in matrix[:: -(-matrix.nbytes // _BYTES_IN_FINGERPRINT)]:
        content.update(np.ascontiguousarray(row).data)
    return content.hexdigest()


def _check_items(path: Path, interactions: Interactions) -> None:
    if PROVENANCE.read(provenance(path))["item_ids"] != item_ids_digest(interactions):
        raise UserError(
            f"{path} was made from another dataset, where items have other indices; extract the "
            f"features of {interactions.directory}"
        )


def item_ids_digest(interactions: Interactions) -> str:
    """Returns the hash of the items' original ids in order; "" for data in memory."""
    return interactions.manifest.get("files", {}).get("item_ids.arrow", {}).get("sha256", "")
