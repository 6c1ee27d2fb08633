"""Images of a TFDS dataset, such as one that `pixelrec tfds` writes."""

import hashlib
import json
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pixelrec_jax.ingest.sources.source import DamagedImageError
from pixelrec_jax.system import errors, files
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.faults import is_of_machine
from pixelrec_jax.system.open_files import most_open

try:
    import tensorflow_datasets as tfds
except ImportError as error:
    raise UserError(
        f"images of a TFDS dataset need tensorflow_datasets ({error}); install requirements.txt"
    ) from None

_MOST_SHARDS = 256  # TFDS keeps each file shard open
_FEATURES = "features.json"  # the types of all features; TFDS imports their classes
_CLASS_KEYS = ("type", "pythonClassName", "python_class_name")  # the names of a class in that file
_KNOWN_CLASS = re.compile(r"tensorflow_datasets\.core\.features(?:\.[A-Za-z_][A-Za-z0-9_]*)+")
_Examples = Sequence[Mapping[str, bytes]]  # not decoded, by feature


class TfdsImages:
    """The encoded images of a TFDS dataset with the features item_id (text) and image.

    All splits are read. One pass over the dataset, without decoding, finds the items and the
    fingerprints of their images. Threads may share a source. It can be pickled: each process opens
    the files on its first read. Raises `UserError` for a folder that is not such a dataset.

    Memory: some 300 bytes for each item, beside what ArrayRecord takes for its own files; an image
    is read as a whole.
    """

    def __init__(self, directory: str | Path):
        self._directory = str(directory)
        self._close()
        self._items: dict[str, tuple[int, bytes]] = {}  # id -> position and digest of the image
        self._ambiguous: dict[str, str] = {}
        try:
            for index, example in enumerate(self._open()):
                item_id = example["item_id"].decode()
                if item_id in self._items:
                    self._ambiguous[item_id] = (
                        f"{self._directory!r} has two images of item {item_id!r}; keep one"
                    )
                self._items[item_id] = index, _digest(example["image"])
        except RuntimeError as error:  # raised by ArrayRecord
            if is_of_machine(error):
                raise
            raise UserError(
                f"{self._directory!r} is damaged: {errors.reason(error)}; copy it again"
            ) from None
        for item_id in self._ambiguous:
            del self._items[item_id]

    def _close(self) -> None:
        self._lock = threading.Lock()
        self._source: _Examples | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        names = ("_directory", "_items", "_ambiguous")
        return {name: vars(self)[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._close()

    def _open(self) -> _Examples:
        with self._lock:
            # A forked child must not use its parent's files, as they share file positions.
            if self._source is None or self._process != os.getpid():
                most_open(_MOST_SHARDS)
                self._source, self._process = _data_source(self._directory), os.getpid()
            return self._source

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have one image."""
        return self._items.keys()

    @property
    def ambiguous(self) -> Mapping[str, str]:
        """A line on each item id that has several images."""
        return self._ambiguous

    def fingerprint(self, item_id: str) -> str:
        """Returns the SHA-256 of an item's image file."""
        return self._items[item_id][1].hex()

    def read(self, item_id: str) -> bytes:
        """Returns the image file of an item; raises `ValueError` with the reason if that fails."""
        index, digest = self._items[item_id]
        try:
            image = self._open()[index]["image"]
        except RuntimeError as error:
            if is_of_machine(error):
                raise
            raise DamagedImageError(errors.reason(error)) from None
        # ArrayRecord may also return nothing, or wrong bytes, if a file is cut off.
        if not isinstance(image, bytes) or _digest(image) != digest:
            raise DamagedImageError("it is not what it was when the dataset was opened")
        return image

    def close(self) -> None:
        """Closes the files."""
        self._close()


def _digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()


def _check_classes(directory: str) -> None:
    """Raises `UserError` if a feature names a class that TFDS does not bring along.

    TFDS imports the module of every class in the file, and a module may lie in the folder.
    """
    content = json.loads(files.read_text(Path(directory, _FEATURES)))
    for name in _class_names(content):
        if not _KNOWN_CLASS.fullmatch(name):
            raise UserError(
                f"{directory!r} has a feature of the class {name[:100]!r}, which is not one of "
                "TFDS itself and is not imported; write the dataset with the features of "
                "tfds.features"
            )


def _class_names(content: Any) -> Iterator[str]:
    """Yields all class names in a part of the file, where a text can hold more JSON."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in _CLASS_KEYS and isinstance(value, str):
                yield value
            else:
                yield from _class_names(value)
    elif isinstance(content, list):
        for value in content:
            yield from _class_names(value)
    elif isinstance(content, str):
        try:
            inner = json.loads(content)
        except ValueError:
            return
        yield from _class_names(inner)


def _check_shards(builder: tfds.core.DatasetBuilder, directory: str) -> None:
    """Raises `UserError` if dataset_info.json names files that are not in the folder."""
    for split in builder.info.splits.values():
        for path in split.filepaths:
            if Path(path) != Path(directory, Path(path).name):
                raise UserError(
                    f"{directory!r} names the file {str(path)[:200]!r}, which is outside of it; "
                    "copy the dataset again"
                )
            files.check_regular(path)


def _data_source(directory: str) -> _Examples:
    try:
        files.check_folder(Path(directory))
        _check_classes(directory)
        builder = tfds.builder_from_directory(directory)
        _check_shards(builder, directory)
    except UserError:
        raise
    except Exception as error:  # TFDS raises several errors that are not documented
        raise UserError(
            f"{directory!r} is not a TFDS dataset ({errors.reason(error)}); give a folder "
            "with dataset_info.json, such as DIR/pixelrec/pixel200k_items/1.0.0"
        ) from None
    if absent := {"item_id", "image"} - set(builder.info.features or ()):
        raise UserError(
            f"{directory!r} has no feature {', '.join(sorted(absent))}; give a dataset of items"
        )
    open_split: Any = builder.as_data_source  # a decorator of TFDS hides its parameters
    return open_split(split="all", decoders={"image": tfds.decode.SkipDecoding()})
