"""Images by item index: finding and checking them, writing one ArrayRecord, reading it back."""

import collections
import csv
import io
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from PIL import Image, UnidentifiedImageError
from rich import progress
from rich.console import Console

from pixelrec_jax.data import interactions
from pixelrec_jax.errors import UserError

RECORDS = "images.array_record"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # The first that exists is taken.
FORMATS = ("JPEG", "PNG", "WEBP")
_GREY = 128
# Groups of one make a random read touch one image only; JPEG and pixels do not compress further.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def decode(image: bytes, size: int | None) -> np.ndarray:
    """Decodes a JPEG, PNG or WEBP file to RGB uint8[size, size, 3]; `None` keeps its own size.

    The resize is Pillow's antialiased bilinear, aspect ratio not kept, EXIF rotation not applied:
    bit for bit what the reference feeds its encoders. Raises `ValueError` with the reason.
    """
    try:
        with Image.open(io.BytesIO(image), formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > Image.MAX_IMAGE_PIXELS:  # Pillow itself only warns up to twice it.
                raise ValueError(f"too large ({width} x {height} pixels)")
            rgb = opened.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("empty file" if not image else "not a JPEG, PNG or WEBP image") from None
    except Image.DecompressionBombError:
        raise ValueError("too large") from None
    except (OSError, SyntaxError, EOFError, MemoryError) as error:
        raise ValueError(f"cannot be decoded ({error})") from None
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def find(folder: Path) -> dict[str, str]:
    """Returns item id -> file name of a folder; raises `UserError` if it holds no images."""
    if not folder.is_dir():
        raise UserError(f"image folder {str(folder)!r} does not exist")
    found: dict[str, tuple[int, str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            suffix = suffix.lower()  # cameras write .JPG
            if suffix in SUFFIXES and _is_file(entry):
                candidate = (SUFFIXES.index(suffix), entry.name)
                found[stem] = min(candidate, found.get(stem, candidate))
    if not found:
        raise UserError(
            f"image folder {str(folder)!r} holds no images (<item_id> + {', '.join(SUFFIXES)})"
        )
    # Ids are looked up here and never joined to a path: "../x" cannot leave the folder.
    return {stem: name for stem, (_, name) in found.items()}


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False


def placeholder(size: int, *, resized: bool) -> bytes:
    """Returns the record of a mid-grey image."""
    if resized:
        return bytes([_GREY]) * (size * size * 3)
    file = io.BytesIO()
    Image.new("RGB", (size, size), (_GREY,) * 3).save(file, "PNG")
    return file.getvalue()


def _record(path: Path | None, size: int, *, resized: bool) -> bytes | ValueError:
    """Reads and fully decodes one image; returns its record, or why it has none."""
    if path is None:
        return ValueError("missing")
    try:
        file = path.read_bytes()
        pixels = decode(file, size if resized else None)
    except OSError as error:
        return ValueError(f"cannot be read ({error.strerror})")
    except ValueError as error:
        return error
    return pixels.tobytes() if resized else file


def write(
    target: Path,
    paths: Sequence[Path | None],
    *,
    size: int,
    resized: bool,
) -> dict[int, str]:
    """Checks all images, writes record i for paths[i] and returns {i: reason} of those without.

    An image that is missing or undecodable gets a placeholder record. Decoding runs on all cores
    and holds only a few images per core; a terminal gets a progress bar.
    """
    grey = placeholder(size, resized=resized)
    reasons: dict[int, str] = {}
    writer = array_record_module.ArrayRecordWriter(str(target), _WRITER_OPTIONS)
    records = progress.track(
        _in_order(paths, size, resized=resized),
        "images",
        total=len(paths),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    try:
        for index, record in enumerate(records):
            if isinstance(record, ValueError):
                reasons[index] = str(record)
                record = grey
            writer.write(record)
    finally:
        writer.close()
    return reasons


def _in_order(
    paths: Sequence[Path | None], size: int, *, resized: bool
) -> Iterator[bytes | ValueError]:
    # Threads are enough, Pillow's decoders release the GIL; the window bounds the memory.
    workers = os.cpu_count() or 1
    pending: collections.deque[Future[bytes | ValueError]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for path in paths:
                pending.append(pool.submit(_record, path, size, resized=resized))
                if len(pending) >= 4 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def report_missing(path: Path, ids: Sequence[str], reasons: dict[int, str]) -> None:
    """Writes the items without a usable image as CSV: item_id, reason."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("item_id", "reason"))
        rows.writerows((ids[index], reasons[index]) for index in sorted(reasons))


def describe_missing(ids: Sequence[str], reasons: dict[int, str]) -> str:
    """Returns the counts and the first examples of items without a usable image."""
    absent = sum(reason == "missing" for reason in reasons.values())
    first = "; ".join(f"{ids[index]}: {reasons[index]}" for index in sorted(reasons)[:3])
    return (
        f"{len(reasons):,} of {len(ids):,} items have no usable image ({absent:,} missing, "
        f"{len(reasons) - absent:,} undecodable): {first}{'; ...' if len(reasons) > 3 else ''}"
    )


def copy(source: Path, target: Path, order: Sequence[int]) -> None:
    """Writes the records `order` of one file to another, in that order."""
    reader = array_record_module.ArrayRecordReader(str(source), _READER_OPTIONS)
    writer = array_record_module.ArrayRecordWriter(str(target), _WRITER_OPTIONS)
    try:
        for index in order:
            writer.write(reader.read([index])[0])
    finally:
        writer.close()
        reader.close()


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
        self._sha256 = manifest["files"][RECORDS]["sha256"]
        self._close()

    def _close(self) -> None:
        self._lock = threading.Lock()
        self._reader: array_record_module.ArrayRecordReader | None = None
        self._process = 0

    @property
    def fingerprint(self) -> str:
        """The hash of the file of images."""
        return self._sha256

    @property
    def num_items(self) -> int:
        """Number of images, which are those of the items 1..num_items (padding not counted)."""
        return self._num_items

    def __getstate__(self) -> dict[str, Any]:
        own = {"_lock", "_reader", "_process"}
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._close()

    def _open(self) -> array_record_module.ArrayRecordReader:
        with self._lock:
            # A forked child must not share its parent's reader, nor the parent's file position.
            if self._reader is None or self._process != os.getpid():
                path = str(self._directory / RECORDS)
                try:
                    reader = array_record_module.ArrayRecordReader(path, _READER_OPTIONS)
                except RuntimeError as error:
                    raise UserError(f"cannot open {path!r}: {error}") from None
                if reader.num_records() != self._num_items:
                    raise UserError(
                        f"{path!r} holds {reader.num_records()} images, manifest.json says "
                        f"{self._num_items}; prepare the dataset again"
                    )
                self._reader, self._process = reader, os.getpid()
            return self._reader

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns uint8[n, size, size, 3] for ids int[n]; zeros for id 0 and ids past the items.

        Padding and mask pixels are made on the device, these zeros only keep the shape.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer) or (ids < 0).any():
            raise ValueError(f"expected item indices int[n] >= 0, got {ids.dtype}{ids.shape}")
        shape = (self._size, self._size, 3)
        images = np.zeros((len(ids), *shape), np.uint8)
        slots = np.flatnonzero((ids > 0) & (ids <= self._num_items))
        if not len(slots):
            return images
        try:
            records = self._open().read((ids[slots] - 1).tolist())
        except RuntimeError as error:
            raise self._damaged(str(error)) from None
        for slot, record in zip(slots, records, strict=True):
            try:
                if self._raw:
                    images[slot] = np.frombuffer(record, np.uint8).reshape(shape)
                else:
                    images[slot] = decode(record, self._size)
            except ValueError as error:
                raise self._damaged(f"image of item {ids[slot]}: {error}") from None
        return images

    def _damaged(self, problem: str) -> UserError:
        path = str(self._directory / RECORDS)
        return UserError(f"{path!r} is damaged: {problem}; copy or prepare the dataset again")
