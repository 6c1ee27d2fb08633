"""PyTorch's weight files, read without PyTorch and without running anything that they hold.

The rules are those of `torch.load(weights_only=True)`: a pickle may name only what is in the two
tables below. Read are the zip format (PyTorch 1.6 and later), the legacy format before it, and the
modules of `torch.jit.save`, such as the files of OpenAI's CLIP.
"""

import math
import pickle
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import ml_dtypes
import numpy as np

from pixelrec_jax.errors import UserError, reason

ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LEGACY = _MAGIC.to_bytes(10, "little")  # as it lies in the first pickle of a legacy file
_MOST_ELEMENTS = 2**31  # of one tensor: an expanded one must not fill the memory of its reader

_DTYPES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}


class _Storage(NamedTuple):
    key: str
    dtype: str  # a key of _DTYPES
    size: int  # in elements, as all sizes here


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Module:
    """A module of TorchScript: its parameters, buffers and submodules are its attributes."""


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _dropped(*_: Any) -> None:
    """Stands for a value that is no tensor."""


_CALLABLES = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": _dropped,
    "torch.device": _dropped,
    "torch.jit._pickle.restore_type_tag": _dropped,
    "torch.jit._pickle.build_intlist": _dropped,
    "torch.jit._pickle.build_doublelist": _dropped,
    "torch.jit._pickle.build_boollist": _dropped,
    "torch.jit._pickle.build_tensorlist": _dropped,
}


class _Unpickler(pickle.Unpickler):
    """Makes nothing but plain values and the inert classes above, whose fields nobody checked."""

    def __init__(self, file: BytesIO):
        super().__init__(file, encoding="utf-8")  # of the strings of Python 2
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        # A pickle can set attributes of whatever it names: it gets copies and immutable values.
        if full == "collections.OrderedDict":
            return OrderedDict
        if full in _DTYPES:
            return full
        if full in _CALLABLES:
            return partial(_CALLABLES[full])
        if module.split(".")[0] == "__torch__":
            return type("Module", (_Module,), {})
        raise UserError(
            f"it asks for {full!r}, but only plain dense tensors are read and nothing is ever run; "
            "save the weights alone, as torch.save(model.state_dict(), ...) or safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, size, *view = pid
        if view not in ([], [None]):
            raise ValueError(f"storage {key} is a part of another")
        self.storages[key] = storage = _Storage(key, dtype, size)
        return storage


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict or TorchScript module by name, as read-only arrays.

    A state dict under "state_dict" or "model" of a checkpoint is found; what is no tensor is left
    out. From TorchScript come non-persistent buffers and plain tensor attributes, too.

    Raises:
      UserError: the file is damaged, asks for more than tensors and plain values, or has no tensor.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP)) == ZIP
        return _read_zip(path) if is_zip else _read_legacy(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path} cannot be read as PyTorch weights: {error}") from None
    # Damaged bytes can raise anything on their way through zipfile, pickle and numpy.
    except Exception as error:
        raise UserError(
            f"{path} is not a readable PyTorch file ({reason(error)}); fetch it again"
        ) from error


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with ZipFile(path) as archive:
        names = archive.namelist()
        roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError("it is a zip file without the data.pkl that torch.save writes")
        member = partial(_member, archive, roots[0])
        if f"{roots[0]}byteorder" in names:
            _check_order(little=member("byteorder") == b"little")
        tree, _ = _unpickle(BytesIO(member("data.pkl")))
        return _arrays(tree, cache(lambda key: member(f"data/{key}")))


def _member(archive: ZipFile, root: str, name: str) -> bytes:
    info = archive.getinfo(root + name)
    if info.compress_type != ZIP_STORED:  # never PyTorch's, and a few bytes could become many
        raise UserError(f"its member {info.filename!r} is compressed")
    return archive.read(info)


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    file = BytesIO(content)
    magic, _ = _unpickle(file)
    protocol, _ = _unpickle(file)
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise ValueError("it does not start as torch.save starts a file")
    system, _ = _unpickle(file)
    _check_order(little=system["little_endian"])
    tree, storages = _unpickle(file)
    keys, _ = _unpickle(file)
    records = {}
    rest = memoryview(content)[file.tell() :]
    for key in keys:  # each storage: its size as int64, then its elements
        end = 8 + int.from_bytes(rest[:8], "little") * _DTYPES[storages[key].dtype].itemsize
        records[key], rest = rest[8:end], rest[end:]
    return _arrays(tree, records.__getitem__)


def _check_order(*, little: bool) -> None:
    if not little:
        raise UserError("its numbers are big-endian; save it again on another machine")


def _unpickle(file: BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """Reads the pickle at the position of `file`: its object and the storages it refers to."""
    start = file.tell()
    # A pass without effect first: it finds lengths beyond the end of the file and a memo of absurd
    # size, for which pickle would take the memory before it looks.
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name in ("PUT", "LONG_BINPUT") and argument > position:
            raise ValueError(f"memo entry {argument} at byte {position}")
    file.seek(start)
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _arrays(tree: Any, record: Callable[[str], bytes | memoryview]) -> dict[str, np.ndarray]:
    tensors = dict(_attributes(tree)) if isinstance(tree, _Module) else _state_dict(tree)
    if not tensors:
        raise UserError("it holds no tensor with a name")
    return {name: _array(tensor, record(tensor.storage.key)) for name, tensor in tensors.items()}


def _attributes(module: _Module) -> Iterator[tuple[str, _Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, _Tensor):
            yield name, value
        elif isinstance(value, _Module):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _attributes(value))


def _state_dict(tree: Any) -> dict[str, _Tensor]:
    nested = [tree.get("state_dict"), tree.get("model")] if isinstance(tree, dict) else []
    for candidate in (*nested, tree):
        items = candidate.items() if isinstance(candidate, dict) else ()
        tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, _Tensor)}
        if tensors:
            return tensors
    return {}


def _array(tensor: _Tensor, record: bytes | memoryview) -> np.ndarray:
    """A view of `record`, the bytes of the storage; here all that the pickle claims is checked."""
    dtype = _DTYPES[tensor.storage.dtype]
    size = tensor.storage.size * dtype.itemsize
    if not 0 <= size <= len(record):
        raise ValueError(f"storage {tensor.storage.key} has {len(record)} bytes instead of {size}")
    if math.prod(tensor.shape) > _MOST_ELEMENTS:
        raise ValueError(f"a tensor of shape {tensor.shape}")
    return np.ndarray(  # raises ValueError unless every element lies within the buffer
        tensor.shape,
        dtype,
        buffer=record[:size],
        offset=tensor.offset * dtype.itemsize,
        strides=[stride * dtype.itemsize for stride in tensor.strides],
    )
