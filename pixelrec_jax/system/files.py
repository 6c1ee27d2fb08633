"""Files that appear complete or not at all."""

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError

LOCK = ".lock"


@contextmanager
def replaced_file(path: Path) -> Generator[Path]:
    """Yields a temporary path; its file replaces `path` at the end, which is never half-written."""
    if storage.is_remote(path):
        with TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            yield temporary
            storage.upload(temporary, path)
        return
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, complete or not at all."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Writes a CSV file, complete or not at all."""
    with (
        replaced_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal, as in the manifest of a dataset."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Forces a file, or the list of entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: Path, *, option: str, busy: str) -> Generator[None]:
    """Holds the lock of a folder, which is created if it does not exist; the lock file stays.

    Object storage does not have locks that end with their process, so nothing is locked there.

    Args:
      folder: the folder.
      option: the flag that named it, for the error.
      busy: the message if another process holds the lock.

    Raises:
      UserError: the folder cannot be written, or another process holds the lock.
    """
    if storage.is_remote(folder):
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(
            f"--{option}={folder} cannot be written ({error.strerror}); give another folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(busy) from None
        yield
