"""Images on the way into a prepared dataset: checked, resized and written in shards.

A shard is an ArrayRecord of `PER_SHARD` images beside a small file that says of what it was made.
A preparation that was interrupted takes up the shards that are there and would not differ.
"""

import hashlib
import io
import json
import os
import threading
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import PIL
from array_record.python import array_record_module
from PIL import Image

from pixelrec_jax.data.images import PER_SHARD, READER_OPTIONS, decode, resize, shard_name
from pixelrec_jax.ingest.sources.source import DamagedImageError, ImageSource
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import digest, sync, write_json

# Groups of one make a random read touch one image only; JPEG and pixels do not compress further.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# What decides on the records beside images: the version of this code, and Pillow, which resizes.
_MAKER = [1, PIL.__version__]


class _StoppedError(Exception):
    """Another shard has failed, or the user has interrupted."""


def write_shards(
    folder: Path, source: ImageSource, item_ids: Sequence[str], *, size: int | None
) -> dict[int, str]:
    """Writes record i for item_ids[i] and returns {i: reason} of those without a usable image.

    Args:
      folder: where the shards go; what a former call has left there is used if it is the same.
      source: of the images.
      item_ids: all items, in order.
      size: of the pixels that are stored; `None` stores files as they are.

    Shards are made on all cores, each in a thread: decoding and resizing release Python's lock. A
    record without an image is empty. A terminal gets a progress bar.

    Raises:
      UserError: what was written reads back differently.
      OSError: from the disk.
    """
    folder.mkdir(exist_ok=True)
    starts = range(0, len(item_ids), PER_SHARD)
    reasons: dict[int, str] = {}
    stop = threading.Event()
    with (
        progress_bar("images", len(item_ids)) as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):

        def write(start: int) -> dict[str, str]:
            shard = _Shard(folder, source, item_ids[start : start + PER_SHARD], start, size, stop)
            found = shard.existing()
            found = shard.write() if found is None else found
            advance(len(shard.item_ids))
            return found

        try:
            futures = {start: pool.submit(write, start) for start in starts}
            for start, future in futures.items():
                # A signal that another thread receives does not end a wait of this one.
                while not future.done():
                    wait([future], timeout=0.2)
                found = future.result()
                reasons |= {start + int(place): reason for place, reason in found.items()}
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    kept = {shard_name(start) for start in starts}
    for path in folder.iterdir():
        if path.name.removesuffix(".json") not in kept:
            path.unlink()
    return reasons


def sidecars(folder: Path) -> list[Path]:
    """Returns the sidecars of the shards in a folder, in order."""
    return sorted(folder.glob("*.json"))


def digests(folder: Path) -> dict[str, dict[str, int | str]]:
    """Returns file name -> sha256 and bytes of all shards."""
    files = {}
    for path in sidecars(folder):
        note = json.loads(path.read_text())
        files[path.stem] = {"sha256": note["sha256"], "bytes": note["bytes"]}
    return files


class _Shard:
    """One shard of images and the note beside it."""

    def __init__(
        self,
        folder: Path,
        source: ImageSource,
        item_ids: Sequence[str],
        start: int,
        size: int | None,
        stop: threading.Event,
    ):
        self.source, self.item_ids, self.size, self.stop = source, item_ids, size, stop
        self.path = folder / shard_name(start)
        self.note = self.path.with_name(self.path.name + ".json")
        inputs = [[id_, self.source.fingerprint(id_)] for id_ in item_ids if id_ in source.ids]
        text = json.dumps([_MAKER, size, list(item_ids), inputs])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def existing(self) -> dict[str, str] | None:
        """Returns the reasons that the note holds, if the shard is whole and of the same images.

        An image that could not be read is tried again.
        """
        try:
            note = json.loads(self.note.read_text())
            same = note["fingerprint"] == self.fingerprint and note["sha256"] == digest(self.path)
            if same and not note["unreadable"]:
                return note["reasons"]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # there is none, or it is half-written
        return None

    def write(self) -> dict[str, str]:
        """Writes and reads back all records, then the note; returns the reasons by place."""
        self.note.unlink(missing_ok=True)
        reasons, checksums, unreadable = {}, [], False
        writer = array_record_module.ArrayRecordWriter(str(self.path), _WRITER_OPTIONS)
        try:
            for place, item_id in enumerate(self.item_ids):
                if self.stop.is_set():
                    raise _StoppedError
                try:
                    record = _record(self.source, item_id, self.size)
                except ValueError as error:
                    reasons[str(place)], record = str(error), b""
                    unreadable = unreadable or isinstance(error, DamagedImageError)
                checksums.append(zlib.crc32(record))
                writer.write(record)
        finally:
            writer.close()
        sync(self.path)
        self._check(checksums)
        write_json(
            self.note,
            {
                "fingerprint": self.fingerprint,
                "sha256": digest(self.path),
                "bytes": self.path.stat().st_size,
                "reasons": reasons,
                "unreadable": unreadable,
            },
        )
        return reasons

    def _check(self, checksums: list[int]) -> None:
        reader = array_record_module.ArrayRecordReader(str(self.path), READER_OPTIONS)
        try:
            same = reader.num_records() == len(checksums) and all(
                zlib.crc32(reader.read([place])[0]) == expected
                for place, expected in enumerate(checksums)
            )
        except RuntimeError:
            same = False
        finally:
            reader.close()
        if not same:
            raise UserError(
                f"{str(self.path)!r} reads back differently from what was written; check the disk "
                "and start again"
            )


def _record(source: ImageSource, item_id: str, size: int | None) -> bytes:
    """Reads and fully decodes an image; returns what is stored of it or raises `ValueError`."""
    if item_id not in source.ids:
        raise ValueError("missing")
    image = source.read(item_id)
    if isinstance(image, np.ndarray):
        rgb = Image.fromarray(image)
        return _encode(rgb) if size is None else resize(rgb, size).tobytes()
    pixels = decode(image, size)
    return image if size is None else pixels.tobytes()


def _encode(rgb: Image.Image) -> bytes:
    """Returns pixels as a file, without loss."""
    file = io.BytesIO()
    rgb.save(file, "PNG", compress_level=1)
    return file.getvalue()
