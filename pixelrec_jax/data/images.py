"""Images of a prepared dataset: decoding, and reading them by item index."""

import hashlib
import io
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from PIL import Image, UnidentifiedImageError

from pixelrec_jax.data import interactions
from pixelrec_jax.data.interactions import RECORD_NUMBERS
from pixelrec_jax.data.manifest import IMAGES, MANIFEST
from pixelrec_jax.data.watched_file import WatchedFile
from pixelrec_jax.system.arrays import map_array
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.faults import is_of_machine
from pixelrec_jax.system.open_files import most_open

RECORDS_PER_SHARD = 1024  # images in an image shard, which is an ArrayRecord file
FORMATS = ("JPEG", "PNG", "WEBP")
_GREY = 128
_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"iCCP", b"iTXt", b"tEXt", b"zTXt")  # chunks of a PNG that Pillow reads up to a limit
_MOST_OPEN = 256  # image shards that a process keeps open, fewer if the system allows only fewer
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"

# They do not name the image; `ingest.image_warnings` does, when a dataset is prepared.
warnings.filterwarnings("ignore", module=r"PIL\.")


def image_shard_name(record_number: int) -> str:
    """Returns the file name of the image shard that holds a record."""
    return f"{record_number // RECORDS_PER_SHARD:05d}.array_record"


def decode(image: bytes, size: int | None) -> np.ndarray:
    """Returns a JPEG, PNG or WEBP file as RGB uint8[size, size, 3]; `None` keeps its own size.

    The resize is Pillow's antialiased bilinear one, without keeping the aspect ratio and without
    EXIF rotation: bit for bit the input of the reference's encoders. Grey, palette and CMYK images
    become RGB and transparency is ignored. Of an animation the first image is taken, of 16-bit
    values the upper 8 bits. Raises `ValueError` with the reason.

    Memory: eight bytes for each pixel, and three times the file. An image has at most 89 million
    pixels, Pillow's limit.
    """
    try:
        try:
            rgb = _decode(image)
        except ValueError:
            if not image.startswith(_PNG):
                raise
            rgb = _decode(_without_texts(image))
    except UnidentifiedImageError:
        raise ValueError("empty file" if not image else "not a JPEG, PNG or WEBP image") from None
    except Image.DecompressionBombError as error:
        size_told = str(error) if isinstance(error, _TooManyPixelsError) else ""
        raise ValueError(f"too large{size_told}") from None
    except Exception as error:  # for damaged files Pillow raises nearly anything
        raise ValueError(f"cannot be decoded ({reason(error)})") from None
    return resize(rgb, size)


class _TooManyPixelsError(Image.DecompressionBombError):
    """An image has more pixels than Pillow's limit; Pillow itself only warns up to twice of it."""


def _decode(image: bytes) -> Image.Image:
    with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
        width, height = opened.size
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and width * height > limit:
            raise _TooManyPixelsError(f" ({width} x {height} pixels)")
        return _to_8_bits(opened).convert("RGB")


def _without_texts(png: bytes) -> bytes:
    """Returns a PNG without colour profile and texts, which are not pixels but may be large."""
    parts, place = [png[: len(_PNG)]], len(_PNG)
    while place < len(png):
        length = int.from_bytes(png[place : place + 4])
        end = place + length + 12  # with length, kind and checksum
        if png[place + 4 : place + 8] not in _TEXTS:
            parts.append(png[place:end])
        place = end
    return b"".join(parts)


def _to_8_bits(image: Image.Image) -> Image.Image:
    if not image.mode.startswith("I"):  # 16-bit grey; Pillow reads 16-bit colours as 8
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def resize(rgb: Image.Image, size: int | None) -> np.ndarray:
    """Returns an RGB image as uint8[size, size, 3], resized as in `decode`."""
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


class ImageStore:
    """The images of a prepared dataset, uint8 RGB of one size, by item index.

    Threads may share a store. It can be pickled: each process opens the files on its first read.
    Raises `UserError` if the directory is not a prepared dataset with images, or if its images were
    resized to another size at preparation.
    """

    field = "image"  # of `Items`
    watched: tuple[WatchedFile, ...]  # the image shards

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
            raise UserError(f"the image size is {size}; give 1 or more pixels as item.image_size")
        stored = manifest["images"]["size"]
        if stored not in (None, size):
            raise UserError(
                f"the images of {str(directory)!r} were resized to {stored} x {stored} pixels, "
                f"but item.image_size={size}; give {stored}, or prepare the dataset again with "
                f"--image_size={size} or --store=original"
            )
        self._raw = manifest["images"]["store"] == "resized"
        self._num_items = manifest["counts"]["items"]
        files = manifest["files"]
        names = sorted(name for name in files if name.startswith((f"{IMAGES}/", RECORD_NUMBERS)))
        content = "".join(files[name]["sha256"] for name in names)
        self._fingerprint = hashlib.sha256(content.encode()).hexdigest()
        self._record_numbers = self._read_record_numbers()
        for number in np.unique(self._record_numbers // RECORDS_PER_SHARD) * RECORDS_PER_SHARD:
            name = f"{IMAGES}/{image_shard_name(number)}"
            if number >= 0 and name not in files:
                raise self._damaged(MANIFEST, f"it has no field files[{name!r}]")
        self.watched = tuple(
            WatchedFile(self._directory / name, files[name]["sha256"])
            for name in names
            if name != RECORD_NUMBERS  # one of `Interactions.watched`
        )
        self._close()

    def _close(self) -> None:
        self._lock = threading.Lock()
        self._readers: dict[Path, array_record_module.ArrayRecordReader] = {}
        self._process, self._most_open = 0, 1

    @property
    def fingerprint(self) -> str:
        """A hash of all images."""
        return self._fingerprint

    @property
    def num_items(self) -> int:
        """The number of images: the items 1..num_items have one each, padding has none."""
        return self._num_items

    def __getstate__(self) -> dict[str, Any]:
        own = {"_lock", "_readers", "_process", "_most_open"}
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._close()

    def _read_record_numbers(self) -> np.ndarray:
        try:
            numbers = map_array(self._directory / RECORD_NUMBERS)
        except (OSError, ValueError) as error:
            if is_of_machine(error):
                raise
            raise self._damaged(RECORD_NUMBERS, error) from None
        if numbers.shape != (self._num_items,) or numbers.dtype != np.int32:
            raise self._damaged(
                RECORD_NUMBERS,
                f"holds {numbers.dtype}{list(numbers.shape)}, expected int32[{self._num_items}]",
            )
        return np.array(numbers)

    def _open(self, path: Path) -> array_record_module.ArrayRecordReader:
        with self._lock:
            # A forked child must not use its parent's readers, as they share file positions.
            if self._process != os.getpid():
                self._readers, self._process = {}, os.getpid()
                self._most_open = most_open(_MOST_OPEN)
            # Ordered by last use. A reader that is dropped closes once no thread reads from it.
            reader = self._readers.pop(path, None)
            if reader is None:
                reader = array_record_module.ArrayRecordReader(str(path), READER_OPTIONS)
                while len(self._readers) >= self._most_open:
                    self._readers.pop(next(iter(self._readers)))
            self._readers[path] = reader
            return reader

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns uint8[n, size, size, 3] for ids int[n]; zeros for id 0 and ids above all items.

        The zeros only keep the shape: the device makes the pixels of padding and the mask item.
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
                raise self._damaged(f"{IMAGES}, item {ids[slot]}", error) from None
        return images

    def record(self, item: int) -> bytes | None:
        """Returns the stored record of a real item; None stands for a grey image."""
        number = int(self._record_numbers[item - 1])
        if number < 0:
            return None
        path = self._directory / IMAGES / image_shard_name(number)
        try:
            return self._open(path).read([number % RECORDS_PER_SHARD])[0]
        except RuntimeError as error:
            if is_of_machine(error):
                raise
            raise self._damaged(f"{IMAGES}/{path.name}", error) from None

    def pixels(self, record: bytes) -> np.ndarray:
        """Returns the image of a record as uint8[size, size, 3].

        Raises:
          ValueError: the record is not an image.
        """
        if self._raw:
            return np.frombuffer(record, np.uint8).reshape(self._size, self._size, 3)
        return decode(record, self._size)

    def _damaged(self, what: str, problem: Exception | str) -> UserError:
        return interactions.damaged(self._directory, f"{what}: {problem}")
