"""Images of a prepared dataset: decoding, and reading them by item index."""

import hashlib
import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from PIL import Image, UnidentifiedImageError

from pixelrec_jax.data import interactions
from pixelrec_jax.system.errors import UserError, reason

FOLDER = interactions.IMAGES
ROWS = "image_rows.npy"  # int32[items]: the record of item i + 1, -1 for a grey image
PER_SHARD = 1024  # records of an ArrayRecord
FORMATS = ("JPEG", "PNG", "WEBP")
_GREY = 128
_MOST_OPEN = 256  # files of a process
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def shard_name(row: int) -> str:
    """Returns the name of the file that holds a record."""
    return f"{row // PER_SHARD:05d}.array_record"


def decode(image: bytes, size: int | None) -> np.ndarray:
    """Decodes a JPEG, PNG or WEBP file to RGB uint8[size, size, 3]; `None` keeps its own size.

    The resize is Pillow's antialiased bilinear, aspect ratio not kept, EXIF rotation not applied:
    bit for bit what the reference feeds its encoders. Grey, palette and CMYK images become RGB,
    transparency is ignored, of an animation there is the first image, of 16 bits the upper 8.
    Raises `ValueError` with the reason.
    """
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            width, height = opened.size
            # Pillow itself only warns up to twice its limit.
            limit = Image.MAX_IMAGE_PIXELS
            too_large = limit is not None and width * height > limit
            rgb = None if too_large else _to_8_bits(opened).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("empty file" if not image else "not a JPEG, PNG or WEBP image") from None
    except Image.DecompressionBombError:
        raise ValueError("too large") from None
    except Exception as error:  # of damaged files Pillow raises nearly anything
        raise ValueError(f"cannot be decoded ({reason(error)})") from None
    if rgb is None:
        raise ValueError(f"too large ({width} x {height} pixels)")
    return resize(rgb, size)


def _to_8_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):  # 16-bit grey; Pillow reads 16-bit colours as 8
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def resize(rgb: Image.Image, size: int | None) -> np.ndarray:
    """Returns an RGB image as uint8[size, size, 3], see `decode`."""
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


class ImageStore:
    """The images of a prepared dataset, uint8 RGB of one size, by item index.

    May be shared by threads, and pickled: each process opens the file on its first read.
    Raises `UserError` for a directory that is not a prepared dataset, or for another size than the
    stored one if the images were resized at preparation.
    """

    field = "image"  # of `Items`

    def __init__(self, directory: str | Path, *, size: int):
        self._directory = Path(directory)
        self._size = size
        manifest = interactions.read_manifest(self._directory)
        if manifest["images"] is None:
            raise UserError(
                f"{str(directory)!r} was prepared without images; prepare it again with "
                "--images=DIR, or train with item=id"
            )
        if size <= 0:
            raise UserError(f"image size must be positive, got {size}")
        stored = manifest["images"]["size"]
        if stored not in (None, size):
            raise UserError(
                f"the images of {str(directory)!r} were resized to {stored} x {stored} pixels, "
                f"asked for is {size} x {size}; ask for {stored}, or prepare the dataset again "
                f"with --image_size={size} or --store=original"
            )
        self._raw = manifest["images"]["store"] == "resized"
        self._num_items = manifest["counts"]["items"]
        files = manifest["files"]
        names = sorted(name for name in files if name.startswith((f"{FOLDER}/", ROWS)))
        content = "".join(files[name]["sha256"] for name in names)
        self._fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self._rows = self._read_rows()
        self._close()

    def _close(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[Path, array_record_module.ArrayRecordReader] = {}
        self._process = 0

    @property
    def fingerprint(self) -> str:
        """A hash of all images."""
        return self._fingerprint

    @property
    def num_items(self) -> int:
        """Number of images, which are those of the items 1..num_items (padding not counted)."""
        return self._num_items

    def __getstate__(self) -> dict[str, Any]:
        own = {"_lock", "_readers", "_process"}
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._close()

    def _read_rows(self) -> np.ndarray:
        try:
            rows = np.load(self._directory / ROWS, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self._damaged(ROWS, error) from None
        if rows.shape != (self._num_items,) or rows.dtype != np.int32:
            raise self._damaged(ROWS, f"holds {rows.dtype}{list(rows.shape)}")
        return rows

    def _open(self, path: Path) -> array_record_module.ArrayRecordReader:
        with self._lock:
            # A forked child must not share its parent's readers, nor the parent's file positions.
            if self._process != os.getpid():
                self._readers, self._process = {}, os.getpid()
            # The latest used is the last; one that is dropped closes when nobody reads it any more.
            reader = self._readers.pop(path, None)
            if reader is None:
                reader = array_record_module.ArrayRecordReader(str(path), READER_OPTIONS)
                while len(self._readers) >= _MOST_OPEN:
                    self._readers.pop(next(iter(self._readers)))
            self._readers[path] = reader
            return reader

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns uint8[n, size, size, 3] for ids int[n]; zeros for id 0 and ids past the items.

        Padding and mask pixels are made on the device, these zeros only keep the shape.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (ids < 0).any():
            raise ValueError(f"expected item indices int[n] >= 0, got {ids.dtype}{ids.shape}")
        shape = (self._size, self._size, 3)
        images = np.zeros((len(ids), *shape), np.uint8)
        for slot in np.flatnonzero((ids > 0) & (ids <= self._num_items)):
            record = self.record(int(ids[slot]))
            try:
                images[slot] = _GREY if record is None else self.pixels(record)
            except ValueError as error:
                raise self._damaged(f"{FOLDER}, item {ids[slot]}", error) from None
        return images

    def record(self, item: int) -> bytes | None:
        """Returns what is stored of a real item, None for a grey image."""
        row = int(self._rows[item - 1])
        if row < 0:
            return None
        path = self._directory / FOLDER / shard_name(row)
        try:
            return self._open(path).read([row % PER_SHARD])[0]
        except RuntimeError as error:
            raise self._damaged(f"{FOLDER}/{path.name}", error) from None

    def pixels(self, record: bytes) -> np.ndarray:
        """Returns uint8[size, size, 3]; raises `ValueError` for what is no image."""
        if self._raw:
            return np.frombuffer(record, np.uint8).reshape(self._size, self._size, 3)
        return decode(record, self._size)

    def _damaged(self, part: str, problem: Exception | str) -> UserError:
        return interactions.damaged(self._directory, f"{part}: {problem}")
