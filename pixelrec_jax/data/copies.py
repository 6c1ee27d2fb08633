"""Copies of remote datasets on this machine, since training reads memory maps and random records.

A copy lies in the cache, one for each content, and is shared by the processes of the machine. It
holds what somebody has looked at: without images until the first `ImageStore`.
"""

import hashlib
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from typing import Any

from pixelrec_jax.system import storage
from pixelrec_jax.system.console import progress_bar
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import digest, replaced_file

_ORIGIN = "origin.txt"  # in a copy: the URL of the dataset
_AT_ONCE = 8  # files; the packages of fsspec split large ones no further


def local_folder(name: str | Path, manifest: str) -> Path:
    """Returns the folder of a dataset on this machine: of a URL a copy, which may be incomplete.

    Args:
      name: folder or URL of a prepared dataset.
      manifest: the name of the file that lists the others, which is copied.

    Raises:
      UserError: there is none, or it cannot be reached.
    """
    if not storage.is_remote(name):
        return Path(name)
    url = str(name).rstrip("/")
    content = storage.read(
        f"{url}/{manifest}",
        missing="no such file, so this is no prepared dataset; run pixelrec prepare to a local "
        "folder and copy that",
    )
    key = hashlib.sha256(url.encode() + b"\n" + content).hexdigest()[:12]
    folder = storage.cache() / "datasets" / f"{url.rpartition('/')[2]}-{key}"
    with storage.exclusive(folder):
        for file, text in ((_ORIGIN, url.encode()), (manifest, content)):
            if not (folder / file).exists():
                with replaced_file(folder / file) as temporary:
                    temporary.write_bytes(text)
    return folder


def origin(folder: Path) -> str | None:
    """Returns the URL that a folder is a copy of, None for others."""
    try:
        return (folder / _ORIGIN).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None


def complete(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Copies those of these files that a copy lacks; does nothing in other folders.

    An interrupted copy goes on with the files it has not got. Each counts once its SHA-256 is that
    of the manifest.

    Args:
      folder: where `local_folder` says.
      files: names below it, as the manifest lists them.

    Raises:
      UserError: a file is not there or has other content, or there is no space for it.
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
                f"{url}: {size / 1e9:,.1f} GB are to be copied to {folder}, which has "
                f"{free / 1e9:,.1f} GB free; name a folder on another disk in the environment "
                "variable PIXELREC_CACHE, or mount the bucket and give the folder"
            )
        if names:
            print(f"copying {size / 1e6:,.1f} MB of {url} to {folder}", file=sys.stderr)
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
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise UserError(f"{url}: its manifest names {name!r}, which is outside of the dataset")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    arrived = target.with_name(target.name + ".part")
    storage.download(f"{url}/{name}", arrived)
    if digest(arrived) != file["sha256"]:
        arrived.unlink()
        raise UserError(
            f"{url}/{name} has other content than its manifest says; copy the dataset there again"
        )
    arrived.replace(target)
