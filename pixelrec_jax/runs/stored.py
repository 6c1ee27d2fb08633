"""The files of a checkpoint: whether all that was written is there, and why one cannot be read.

Orbax keeps all arrays in one store, OCDBT: an index names the file, the offset and the length of
every chunk of every array. The index has checksums, the chunks have none.
"""

import errno
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import tensorstore
from orbax.checkpoint import v1 as ocp

from pixelrec_jax.runs.digest import leaves_by_name
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import TransientError, UserError
from pixelrec_jax.system.faults import advice, causes, error_number
from pixelrec_jax.system.files import open_regular
from pixelrec_jax.system.foreign import clean_line

STATE = "state"  # the folder of the arrays within a checkpoint
METADATA = "_CHECKPOINT_METADATA"
COMMITTED = "commit_success.txt"  # marks a complete checkpoint
INCOMPLETE = ".orbax-checkpoint-tmp"  # ends the name of a folder that orbax removes at a start
# What orbax and tensorstore raise for content that is cut, scrambled or not there.
_OF_CONTENT = (
    *(ValueError, LookupError, TypeError, AttributeError, FileNotFoundError),
    ocp.errors.InvalidLayoutError,
)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_STATUS = re.compile(r"([A-Z]+(?:_[A-Z]+)*): ")  # how errors of tensorstore begin
_OF_DATA = ("DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE")


def own_context() -> ocp.Context:
    """Returns a context for loading in this process, whatever becomes of the others."""
    context, here = ocp.Context(), jax.process_index()
    context.multiprocessing.primary_host = here
    context.multiprocessing.active_processes = {here}
    return context


def check_files(folder: Path) -> None:
    """Raises an error unless all files of a checkpoint can be opened and hold what the index names.

    Every array must have all its chunks, and every file must reach as far as the index says. The
    chunks themselves are not read: this takes a few requests, whatever the size of the state.
    """
    if not storage.is_remote(folder):
        _open_all(folder)
    store = _open(folder / STATE)
    ends: dict[str, int] = {}
    for place in _places(store):
        _, base, name, offset, length = place.split(":")
        ends[base + name] = max(ends.get(base + name, 0), int(offset) + int(length))
    last = {name: slice(end - 1, end) for name, end in ends.items() if end}
    bytes_read = {name: store.read(name, byte_range=where) for name, where in last.items()}
    for name, read in bytes_read.items():
        if read.result().state != "value":
            raise FileNotFoundError(f"{STATE}/{name} is missing")
    _check_chunks(tensorstore.KvStore.open({"driver": "ocdbt", "base": store.spec()}).result())


def check_shapes(saved: Any, template: Any) -> None:
    """Raises `ValueError` if an array is missing or has another shape, up to a table's rows."""
    there, here = (
        {name: leaf.shape for name, leaf in leaves_by_name(tree).items()}
        for tree in (saved, template)
    )
    if absent := here.keys() - there.keys():
        raise ValueError(f"{min(absent)} is missing")
    for name, shape in here.items():
        rows = 1 if name.endswith("/table") else 0
        if len(there[name]) != len(shape) or there[name][rows:] != shape[rows:]:
            raise ValueError(f"{name} is {list(there[name])}, expected {list(shape)}")


def damage(error: BaseException) -> str | None:
    """Returns what is wrong with the content of files, as an error of a library tells it.

    None if the error is of another kind: files that may not be read, a network or memory at its
    end, an interrupt, a fault of the program.
    """
    number, told = _number(error)
    if number:
        return _one_line(told) if number in _ABSENT else None
    *_, root = causes(error)
    text = _one_line(root)
    status = _STATUS.match(text)
    damaged = status[1] in _OF_DATA if status else isinstance(root, _OF_CONTENT)
    return (text or type(root).__name__) if damaged else None


def _open(folder: Path) -> tensorstore.KvStore:
    """Returns the store of files of a local folder, or of one on gs://."""
    if storage.is_remote(folder):
        return tensorstore.KvStore.open(f"{folder}/").result()
    return tensorstore.KvStore.open({"driver": "file", "path": f"{folder.absolute()}/"}).result()


def _open_all(folder: Path) -> None:
    """Raises an error if a file cannot be opened; libraries take some of these for missing ones."""

    def fail(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=fail):
        for name in names:
            open_regular(Path(place, name)).close()


def _places(store: tensorstore.KvStore) -> Iterator[str]:
    """Yields the places of an index's nodes and of its chunks, as "kind:base:file:offset:length".

    Small chunks have none: they lie in the index itself.
    """
    manifest: Any = tensorstore.ocdbt.dump(store).result()
    nodes = [manifest["versions"][-1]["root"]["location"]]
    while nodes:
        yield (place := nodes.pop())
        node: Any = tensorstore.ocdbt.dump(store, place).result()
        nodes += [entry["location"] for entry in node["entries"] if "location" in entry]
        yield from (e["indirect_value"] for e in node["entries"] if "indirect_value" in e)


def _check_chunks(arrays: tensorstore.KvStore) -> None:
    """Raises `ValueError` if an array does not have as many chunks as its description says."""
    names = [key.decode().partition("/") for key in arrays.list().result()]
    chunks = Counter(array for array, _, inner in names if inner != "zarr.json")
    described = [array for array, _, inner in names if inner == "zarr.json"]
    reads = {array: arrays.read(f"{array}/zarr.json") for array in described}
    for array, read in reads.items():
        content = json.loads(read.result().value)
        chunk = content["chunk_grid"]["configuration"]["chunk_shape"]
        grid = (-(-size // step) for size, step in zip(content["shape"], chunk, strict=True))
        if chunks[array] != (expected := math.prod(grid)):
            raise ValueError(f"{array} has {chunks[array]} chunks, expected {expected}")


def raise_explained(what: str, error: Exception, folder: Path, *, state: str = "") -> NoReturn:
    """Raises a `UserError` that says why files of a folder cannot be read or written.

    Args:
      what: what cannot be done.
      error: an error of the system or, for a folder on gs://, of the network; any other error is
        raised as it is.
      folder: where the files are.
      state: what is left, if anything has to be said of it.
    """
    state = f"{state}; " if state else ""
    *_, root = causes(error)
    if storage.is_remote(folder) and (isinstance(root, OSError) or _STATUS.match(str(root))):
        raise TransientError(
            f"{what} ({_one_line(root)}); {state}check the network and start again"
        ) from error
    number, told = _number(error)
    if not number:
        raise error if isinstance(root, Exception) else root  # orbax also wraps an interrupt
    raise UserError(f"{what} ({_one_line(told)}); {state}{advice(number)}") from error


def _number(error: BaseException) -> tuple[int, BaseException]:
    """Returns the number of the system's error behind an error, and the one that tells it, or 0."""
    found = ((error_number(cause), cause) for cause in causes(error))
    return next((pair for pair in found if pair[0]), (0, error))


def _one_line(error: BaseException) -> str:
    """Returns an error's text without tensorstore's description of the store."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return clean_line(str(error).partition(" [tensorstore_spec=")[0], width=200)
