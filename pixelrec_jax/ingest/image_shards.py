"""Image shards of a prepared dataset: images are checked, perhaps resized, and written.

An image shard is an ArrayRecord file of `RECORDS_PER_SHARD` images. Its sidecar, a small JSON file
beside it, says what it was made from. An interrupted preparation keeps the shards that would be the
same.
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
from typing import Annotated

import numpy as np
import PIL
from array_record.python import array_record_module
from PIL import Image
from pydantic import Field
from typing_extensions import TypedDict

from pixelrec_jax.data.images import (
    READER_OPTIONS,
    RECORDS_PER_SHARD,
    decode,
    image_shard_name,
    resize,
)
from pixelrec_jax.data.manifest import File
from pixelrec_jax.ingest import image_warnings
from pixelrec_jax.ingest.sources.matching import MISSING
from pixelrec_jax.ingest.sources.source import DamagedImageError, ImageSource
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.faults import is_of_machine
from pixelrec_jax.system.files import digest, sync
from pixelrec_jax.system.schema import Count, Document, Sha256, record

# With groups of one, a random read touches one image; images are not compressed again.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# Records depend on the images and on these: the version of this code, and Pillow, which resizes.
_MAKER = [1, PIL.__version__]


@record
class Sidecar(TypedDict):
    """What an image shard was made from, and which images are missing: reasons by place in it."""

    fingerprint: Sha256
    sha256: Sha256
    bytes: Count
    reasons: dict[Annotated[str, Field(pattern=r"^\d{1,4}$")], str]
    unreadable: bool


SIDECAR = Document("*.array_record.json", Sidecar, "remove {folder} and prepare the dataset again")


class _StoppedError(Exception):
    """Another image shard has failed, or the user has interrupted."""


def write_shards(
    folder: Path, source: ImageSource, item_ids: Sequence[str], *, size: int | None
) -> dict[int, str]:
    """Writes record i for item_ids[i]; returns {i: reason} for items without a usable image.

    Each shard is made by a thread, on all cores, because decoding and resizing release Python's
    lock. The record of an item without an image is empty.

    Args:
      folder: the folder of the shards; shards of an earlier call are kept if they are the same.
      source: the source of the images.
      item_ids: all items, in order.
      size: height and width of the stored pixels; `None` stores files as they are.

    Raises:
      UserError: an item has several images, or a shard reads back differently from what was
        written.
      OSError: the disk failed.
    """
    for item_id in item_ids if source.ambiguous else ():
        if why := source.ambiguous.get(item_id):
            raise UserError(why)
    folder.mkdir(exist_ok=True)
    starts = range(0, len(item_ids), RECORDS_PER_SHARD)
    reasons: dict[int, str] = {}
    stop = threading.Event()
    with (
        image_warnings.collected(),
        progress_bar("images", len(item_ids)) as advance,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):

        def write(start: int) -> dict[str, str]:
            shard = _Shard(
                folder, source, item_ids[start : start + RECORDS_PER_SHARD], start, size, stop
            )
            found = shard.existing()
            found = shard.write() if found is None else found
            advance(len(shard.item_ids))
            return found

        try:
            futures = {start: pool.submit(write, start) for start in starts}
            for start, future in futures.items():
                # A signal that another thread receives does not end this thread's wait.
                while not future.done():
                    wait([future], timeout=0.2)
                found = future.result()
                reasons |= {start + int(place): reason for place, reason in found.items()}
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    kept = {image_shard_name(start) for start in starts}
    for path in folder.iterdir():
        if path.name.removesuffix(".json") not in kept:
            path.unlink()
    return reasons


def sidecars(folder: Path) -> list[Path]:
    """Returns the paths of the sidecars in a folder, in order."""
    return sorted(folder.glob("*.json"))


def digests(folder: Path) -> dict[str, File]:
    """Returns file name -> sha256 and bytes of all image shards in a folder."""
    files: dict[str, File] = {}
    for path in sidecars(folder):
        sidecar = SIDECAR.read(path)
        files[path.stem] = {"sha256": sidecar["sha256"], "bytes": sidecar["bytes"]}
    return files


class _Shard:
    """One image shard and its sidecar."""

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
        self.path = folder / image_shard_name(start)
        self.sidecar = self.path.with_name(self.path.name + ".json")
        inputs = [[id_, self.source.fingerprint(id_)] for id_ in item_ids if id_ in source.ids]
        text = json.dumps([_MAKER, size, list(item_ids), inputs])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def existing(self) -> dict[str, str] | None:
        """Returns the reasons in the sidecar if the shard is complete and would be the same.

        A shard with an image that could not be read is made again.
        """
        try:
            sidecar = SIDECAR.read(self.sidecar)
            same = sidecar["fingerprint"] == self.fingerprint and sidecar["sha256"] == digest(
                self.path
            )
            if same and not sidecar["unreadable"]:
                return sidecar["reasons"]
        except (OSError, UserError):
            pass  # the sidecar or the shard is missing or damaged
        return None

    def write(self) -> dict[str, str]:
        """Writes and reads back all records, then writes the sidecar; returns reasons by index."""
        self.sidecar.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)  # it may be a link, which the writer would follow
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
        SIDECAR.write(
            self.sidecar,
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
            same = all(  # first, since a reader that could not open its file has no records
                zlib.crc32(reader.read([place])[0]) == expected
                for place, expected in enumerate(checksums)
            ) and reader.num_records() == len(checksums)
        except RuntimeError as error:
            if is_of_machine(error):
                raise
            same = False
        finally:
            reader.close()
        if not same:
            raise UserError(
                f"{str(self.path)!r} reads back differently from what was written; check the disk "
                "and start again"
            )


def _record(source: ImageSource, item_id: str, size: int | None) -> bytes:
    """Returns the record of an image after decoding all of it; raises `ValueError` if it fails."""
    image_warnings.set_item(item_id)
    if item_id not in source.ids:
        raise ValueError(MISSING)
    image = source.read(item_id)
    if isinstance(image, np.ndarray):
        rgb = Image.fromarray(image)
        return _encode(rgb) if size is None else resize(rgb, size).tobytes()
    pixels = decode(image, size)
    return image if size is None else pixels.tobytes()


def _encode(rgb: Image.Image) -> bytes:
    """Returns pixels as a lossless image file."""
    file = io.BytesIO()
    rgb.save(file, "PNG", compress_level=1)
    return file.getvalue()
