"""Reads PyTorch's weight files without PyTorch and without running any code that they hold.

The rules are those of `torch.load(weights_only=True)`: a pickle may name only the types and
functions in the two tables below. The formats are zip (PyTorch 1.6 and later), the legacy format
before it, and modules of `torch.jit.save`, such as the files of OpenAI's CLIP.
"""

import math
import pickle
import pickletools
from collections.abc import Callable, Iterator
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import ml_dtypes
import numpy as np

from pixelrec_jax.system.errors import UserError, reason

ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LEGACY = _MAGIC.to_bytes(10, "little")  # its bytes in the first pickle of a legacy file
# Limits, so that an expanded tensor or a module under many names does not fill the memory.
_MOST_REPEATED = 2**20  # elements of a tensor with more elements than its storage
_MOST_ATTRIBUTES = 100_000  # of a module with all its submodules
_LONGEST_NAME = 1000  # letters in the name of an attribute

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
    size: int  # in elements, as all sizes in this module


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# A pickle can set the state of every object it names. The two classes below define what that does;
# neither they nor their instances have a dictionary that a pickle could write to.


class _Dict(dict):
    """Stands for an OrderedDict, but ignores its attributes, such as a state dict's metadata."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _Module:
    """Stands for a TorchScript module: its attributes are parameters, buffers and submodules."""

    __slots__ = ("attributes",)

    def __setstate__(self, state: Any) -> None:
        self.attributes = state


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _dropped(*_: Any) -> None:
    """Returns None, which stands for a value that is not a tensor."""


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


class _Call(NamedTuple):
    """A call of one of the functions above, as a value without state."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        return _CALLABLES[self.name](*arguments)


class _Unpickler(pickle.Unpickler):
    """Makes only plain values and the inert classes above; their fields are not checked yet."""

    def __init__(self, file: BytesIO):
        super().__init__(file, encoding="utf-8")  # for strings of Python 2
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return _Dict
        if full in _DTYPES:
            return full
        if full in _CALLABLES:
            return _Call(full)
        if module.split(".")[0] == "__torch__":
            return _Module
        raise UserError(
            f"it names {full!r}, but only plain dense tensors are read and no code is run; save "
            "only the weights, with torch.save(model.state_dict(), ...) or as safetensors"
        )

    def persistent_load(self, pid: Any) -> _Storage:
        _, dtype, key, _, size, *view = pid
        if view not in ([], [None]):
            raise ValueError("a storage is a view of another")
        if not (isinstance(dtype, str) and isinstance(key, str)):
            raise ValueError("the name or type of a storage is not text")
        self.storages[key] = storage = _Storage(key, dtype, size)
        return storage


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict or TorchScript module by name, as read-only arrays.

    A state dict may be under "state_dict" or "model" of a checkpoint; values that are not tensors
    are left out. A TorchScript module also gives non-persistent buffers and tensor attributes.

    Raises:
      UserError: the file is damaged, names other types than tensors and plain values, or does not
        have a tensor.
    """
    try:
        with path.open("rb") as file:
            is_zip = file.read(len(ZIP)) == ZIP
        return _read_zip(path) if is_zip else _read_legacy(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path} cannot be read as PyTorch weights: {error}") from None
    # For damaged bytes, zipfile, pickle and numpy can raise any exception.
    except Exception as error:
        raise UserError(
            f"{path} is not a readable PyTorch file ({reason(error)}); fetch it again"
        ) from error


def _read_zip(path: Path) -> dict[str, np.ndarray]:
    with ZipFile(path) as archive:
        names = archive.namelist()
        roots = [n[: -len("data.pkl")] for n in names if n.endswith("/data.pkl")]
        if len(roots) != 1:
            raise UserError(
                "it is a zip file without the data.pkl that torch.save writes; give a file of "
                "torch.save or safetensors"
            )
        member = partial(_member, archive, roots[0])
        if f"{roots[0]}byteorder" in names:
            _check_order(little=member("byteorder") == b"little")
        tree, _ = _unpickle(BytesIO(member("data.pkl")))
        return _arrays(tree, cache(lambda key: member(f"data/{key}")))


def _member(archive: ZipFile, root: str, name: str) -> bytes:
    info = archive.getinfo(root + name)
    if info.compress_type != ZIP_STORED:  # PyTorch never compresses; a few bytes could become many
        raise UserError(f"its member {info.filename!r} is compressed; save it with torch.save")
    return archive.read(info)


def _read_legacy(content: bytes) -> dict[str, np.ndarray]:
    file = BytesIO(content)
    magic, _ = _unpickle(file)
    protocol, _ = _unpickle(file)
    if (magic, protocol) != (_MAGIC, _PROTOCOL):
        raise ValueError("it does not start like a file of torch.save")
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
    """Returns the object of the pickle at the position of `file`, and the storages it names."""
    start = file.tell()
    # First a pass without effect: it finds lengths beyond the end of the file and a memo of absurd
    # size, for which pickle would allocate memory before it checks them.
    for opcode, argument, position in pickletools.genops(file):
        if opcode.name in ("PUT", "LONG_BINPUT"):
            assert argument is not None, "these have one"
            assert position is not None, "a file can tell"
            if argument > position:
                raise ValueError(f"memo entry {argument} at byte {position}")
    file.seek(start)
    unpickler = _Unpickler(file)
    return unpickler.load(), unpickler.storages


def _arrays(tree: Any, record: Callable[[str], bytes | memoryview]) -> dict[str, np.ndarray]:
    tensors = _module_tensors(tree) if isinstance(tree, _Module) else _state_dict(tree)
    if not tensors:
        raise UserError("it does not hold a named tensor; save model.state_dict() of the encoder")
    return {name: _array(tensor, record(tensor.storage.key)) for name, tensor in tensors.items()}


def _module_tensors(module: _Module) -> dict[str, _Tensor]:
    tensors = {}
    for count, (name, value) in enumerate(_attributes(module)):
        # Modules can share submodules, or contain themselves.
        if count == _MOST_ATTRIBUTES or len(name) > _LONGEST_NAME:
            raise UserError(
                f"it has more than {_MOST_ATTRIBUTES:,} names or one of over {_LONGEST_NAME:,} "
                f"letters ({name[:40]}...); save only the weights"
            )
        if isinstance(value, _Tensor):
            tensors[name] = value
    return tensors


def _attributes(module: _Module) -> Iterator[tuple[str, Any]]:
    for name, value in module.attributes.items():
        if isinstance(name, str):
            yield name, value
            if isinstance(value, _Module):
                yield from ((f"{name}.{inner}", x) for inner, x in _attributes(value))


def _state_dict(tree: Any) -> dict[str, _Tensor]:
    nested = [tree.get("state_dict"), tree.get("model")] if isinstance(tree, dict) else []
    for candidate in (*nested, tree):
        items = candidate.items() if isinstance(candidate, dict) else ()
        tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, _Tensor)}
        if tensors:
            return tensors
    return {}


def _array(tensor: _Tensor, record: bytes | memoryview) -> np.ndarray:
    """Returns a view of `record`, the bytes of the storage, after checking the pickle's claims."""
    storage, offset, shape, strides = tensor
    if not (isinstance(shape, tuple) and isinstance(strides, tuple)) or len(shape) > 64:
        raise ValueError("a tensor without a shape")
    numbers = (storage.size, offset, *shape, *strides)
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
        raise ValueError("the size, offset, shape or strides of a tensor are not valid numbers")
    dtype = _DTYPES[storage.dtype]
    size = storage.size * dtype.itemsize
    if size > len(record):
        raise ValueError(f"storage {storage.key} has {len(record)} bytes instead of {size}")
    if math.prod(shape) > max(storage.size, _MOST_REPEATED):
        raise ValueError(f"a tensor of shape {shape} has {storage.size} elements")
    return np.ndarray(  # raises ValueError unless every element lies within the buffer
        shape,
        dtype,
        buffer=record[:size],
        offset=offset * dtype.itemsize,
        strides=[stride * dtype.itemsize for stride in strides],
    )
