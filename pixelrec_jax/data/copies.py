"""Local copies of remote datasets: training reads memory maps and random records.

Each version of a dataset has one copy in the cache, which the processes of the machine share. A
copy holds only what was asked for: the first `ImageStore` copies the images.
"""

import hashlib
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from pixelrec_jax.system import storage
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.faults import is_of_machine
from pixelrec_jax.system.files import digest, read_text, replaced_file
from pixelrec_jax.system.foreign import one_line
from pixelrec_jax.system.redact import redact

_ORIGIN = "origin.txt"  # in a copy: the URL of the dataset, without secrets
_ADDRESSES: dict[Path, str] = {}  # by copy: the URL as it was given to this process
_AT_ONCE = 8  # files that are copied at the same time, each by one thread


def local_folder(name: str | Path, manifest: str) -> Path:
    """Returns the local folder of a dataset; for a URL this is a copy, which may be incomplete.

    Args:
      name: folder or URL of a prepared dataset.
      manifest: the name of the file that lists all others; it is copied here.

    Raises:
      UserError: the URL has no dataset, or it cannot be reached.
    """
    if not storage.is_remote(name):
        return Path(storage.expand_user(name))
    url = str(name).rstrip("/")
    content = storage.read(
        f"{url}/{manifest}",
        missing="there is no such file, so this is not a prepared dataset; run pixelrec prepare to "
        "a local folder and copy that",
    )
    shown = redact(url)  # another signature does not make another copy
    key = hashlib.sha256(shown.encode() + b"\n" + content).hexdigest()[:12]
    folder = storage.cache() / "datasets" / f"{shown.rpartition('/')[2]}-{key}"
    _ADDRESSES[folder] = url
    with storage.exclusive(folder):
        for file, text in ((_ORIGIN, shown.encode()), (manifest, content)):
            if not (folder / file).exists():
                with replaced_file(folder / file) as temporary:
                    temporary.write_bytes(text)
    return folder


def origin(folder: Path) -> str | None:
    """Returns the URL that a folder is a copy of; None if the folder is not a copy.

    The URL has its secrets only in the process that was given it.
    """
    if folder in _ADDRESSES:
        return _ADDRESSES[folder]
    try:
        return read_text(folder / _ORIGIN)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if is_of_machine(error):
            raise
        raise UserError(
            f"{folder / _ORIGIN} cannot be read: {error.strerror}; copy the dataset again"
        ) from None


def complete(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Copies the missing files of a copy; does nothing in a folder that is not a copy.

    An interrupted copy continues with the files that it lacks. A file is complete when its SHA-256
    is the one in the manifest.

    Args:
      folder: the folder that `local_folder` returned.
      files: the entries of the manifest, by name below the folder.

    Raises:
      UserError: a file is missing or has other content, or there is not enough space.
    """
    url = origin(folder)
    if url is None or not _missing(folder, files):
        return
    with storage.exclusive(folder):
        names = _missing(folder, files)  # another process may have copied them meanwhile
        size = sum(files[name]["bytes"] for name in names)
        free = shutil.disk_usage(folder).free
        if size > free:
            raise UserError(
                f"{url}: {size / 1e9:,.1f} GB must be copied to {folder}, which has "
                f"{free / 1e9:,.1f} GB free; name a folder on another disk in the environment "
                "variable PIXELREC_CACHE, or mount the bucket and give the folder"
            )
        if names:
            line = f"copying {size / 1e6:,.1f} MB of {url} to {folder}"
            print(one_line(line), file=sys.stderr)
        executor = ThreadPoolExecutor(_AT_ONCE)
        try:
            with progress_bar("Copying", total=size) as advance:
                copied = {executor.submit(_copy, url, folder, n, files[n]): n for n in names}
                for future in as_completed(copied):
                    future.result()
                    advance(files[copied[future]]["bytes"])
        finally:
            executor.shutdown(cancel_futures=True)


def _missing(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    def is_there(name: str) -> bool:
        path = folder / name
        return path.is_file() and path.stat().st_size == files[name]["bytes"]

    return [name for name in files if not is_there(name)]


def _copy(url: str, folder: Path, name: str, file: Mapping[str, Any]) -> None:
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(target) as unchecked:
        storage.download(f"{url}/{name}", unchecked)
        if digest(unchecked) != file["sha256"]:
            raise UserError(
                f"{url}/{name} has other content than its manifest says; copy the dataset there "
                "again"
            )
