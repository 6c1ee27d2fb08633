"""Reads PyTorch's weight files without PyTorch and without running any code that they hold.

The rules are those of `torch.load(weights_only=True)`: a pickle may name only the types and
functions in the two tables below. The formats are zip (PyTorch 1.6 and later), the legacy format
before it, and modules of `torch.jit.save`, such as the files of OpenAI's CLIP.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZIP_STORED, ZipFile

import ml_dtypes
import numpy as np

from pixelrec_jax.system import pickled
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.pickled import Call, Instance

ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LEGACY = _MAGIC.to_bytes(10, "little")  # its bytes in the first pickle of a legacy file
# Limits, so that an expanded tensor or a module under many names does not fill the memory.
_MOST_REPEATED = 2**20  # elements of a tensor with more elements than its storage
_MOST_ATTRIBUTES = 100_000  # of a module with all its submodules
_LONGEST_NAME = 1000  # letters in the name of an attribute
_MOST_STEPS = 2**22  # of a pickle; a tensor takes some 30, which leaves room for 100,000

# Where trainers keep the weights in a checkpoint; the first that is there is read.
_STATE_DICTS = ("state_dict", "model", "model_state_dict", "net", "module")

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


def _allowed(name: str) -> Any:
    """Returns what stands for a name; the fields of tensors are not checked yet."""
    if name in _DTYPES:
        return name
    if name in _CALLABLES:
        return Call(_CALLABLES[name])
    if name.split(".")[0] == "__torch__":  # a module: its attributes are its state
        return Call(Instance)
    raise UserError(
        f"it names {name[:100]!r}, but only plain dense tensors are read and no code is run; save "
        "only the weights, with torch.save(model.state_dict(), ...) or as safetensors"
    )


def _storage(persistent_id: tuple[Any, ...]) -> _Storage:
    _, dtype, key, _, size, *view = persistent_id
    if view not in ([], [None]):
        raise ValueError("a storage is a view of another")
    if not (isinstance(dtype, str) and isinstance(key, str)):
        raise ValueError("the name or type of a storage is not text")
    return _Storage(key, dtype, size)


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict or TorchScript module by name, as read-only arrays.

    A state dict may be under a name of `_STATE_DICTS` in a checkpoint, or be its only dictionary of
    tensors, one level deeper at most; values that are not tensors are left out. A TorchScript
    module also gives non-persistent buffers and tensor attributes.

    Memory: the file, and a copy of each storage; what its pickle may make is bounded in
    `pickled.load`, at any depth. A view that repeats elements has at most `_MOST_REPEATED` of them.

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
        members = archive.infolist()
        # Members that overlap would take more memory than the file is long.
        if sum(member.compress_size for member in members) > path.stat().st_size:
            raise ValueError("its members are longer than the file")
        names = [member.filename for member in members]
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
    if not all(isinstance(key, str) for key in keys):
        raise ValueError("the name of a storage is not text")
    for key in keys:  # each storage: its size as int64, then its elements
        end = 8 + int.from_bytes(rest[:8], "little") * _DTYPES[storages[key].dtype].itemsize
        records[key], rest = rest[8:end], rest[end:]
    return _arrays(tree, records.__getitem__)


def _check_order(*, little: bool) -> None:
    if not little:
        raise UserError("its numbers are big-endian; save it again on another machine")


def _unpickle(file: BytesIO) -> tuple[Any, dict[str, _Storage]]:
    """Returns the object of the pickle at the position of `file`, and the storages it names."""
    storages: dict[str, _Storage] = {}

    def persistent(persistent_id: tuple[Any, ...]) -> _Storage:
        storage = _storage(persistent_id)
        storages[storage.key] = storage
        return storage

    return pickled.load(file, _allowed, limit=_MOST_STEPS, persistent=persistent), storages


def _arrays(tree: Any, record: Callable[[str], bytes | memoryview]) -> dict[str, np.ndarray]:
    tensors = _module_tensors(tree) if isinstance(tree, Instance) else _state_dict(tree)
    if not tensors:
        raise UserError("it does not hold a named tensor; save model.state_dict() of the encoder")
    return {name: _array(tensor, record(tensor.storage.key)) for name, tensor in tensors.items()}


def _module_tensors(module: Instance) -> dict[str, _Tensor]:
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


def _attributes(module: Instance) -> Iterator[tuple[str, Any]]:
    for name, value in module.state.items():
        if isinstance(name, str):
            yield name, value
            if isinstance(value, Instance):
                yield from ((f"{name}.{inner}", x) for inner, x in _attributes(value))


def _state_dict(tree: Any) -> dict[str, _Tensor]:
    """Returns the tensors of a state dict, or of the one that a checkpoint holds under a name."""
    own = _tensors(tree)
    nested = {}
    for name, value in tree.items() if isinstance(tree, dict) else ():
        inner = (value, *value.values()) if isinstance(value, dict) else ()
        if found := next(filter(None, map(_tensors, inner)), None):
            nested[name] = found
    for name in _STATE_DICTS:
        if name in nested:
            return nested[name]
    if len(nested) > 1:
        raise UserError(
            f"it holds tensors under {', '.join(map(repr, [*nested][:4]))}; save one of these"
        )
    # A checkpoint may have a tensor beside its weights, such as the loss.
    return max(own, *nested.values(), key=len) if nested else own


def _tensors(tree: Any) -> dict[str, _Tensor]:
    items = tree.items() if isinstance(tree, dict) else ()
    return {name: value for name, value in items if isinstance(value, _Tensor)}


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
