"""Files that appear complete or not at all, and reading of files that others made."""

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.foreign import csv_cell
from pixelrec_jax.system.temporary import open_lock, remove_leftovers, temporary_file

LOCK = ".lock"
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def replaced_file(path: Path) -> Generator[Path]:
    """Yields a temporary path; its file replaces `path` at the end, which is never half-written."""
    if storage.is_remote(path):
        with TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            yield temporary
            storage.upload(temporary, path)
        return
    with temporary_file(path.parent) as temporary:
        try:
            yield temporary
            temporary.replace(path)
        except OSError as error:
            if error.filename == str(temporary):
                error.filename, error.filename2 = str(path), None  # a name that means something
            raise


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, complete or not at all."""
    with replaced_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Writes a CSV file, complete or not at all; its cells go through `csv_cell`."""
    with (
        replaced_file(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(map(csv_cell, row) for row in rows)


def check_regular(path: str | Path) -> None:
    """Raises `OSError` unless a local path, or what it links to, is a regular file.

    To open or read a pipe or a device can wait for ever, or never end.
    """
    _check_mode(os.stat(path).st_mode, path)


def _check_mode(mode: int, path: str | Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "of another kind")
        raise OSError(errno.EINVAL, f"it is {kind} and not a file", str(path))


def check_folder(folder: Path) -> None:
    """Raises `OSError` if a local folder, at any depth, has an entry that is not a file or folder.

    For folders whose files a library opens. Links to folders are not followed.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            try:
                mode = os.stat(path).st_mode
            except OSError:  # a link to nothing, or a file that is gone: opening it fails at once
                continue
            _check_mode(mode, path)


def open_regular(path: str | Path) -> io.BufferedReader:
    """Opens a local file for reading; raises `OSError` at once if it is not a regular file."""
    check_regular(path)  # first, since opening a device can have effects
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(os.fstat(handle).st_mode, path)
        return os.fdopen(handle, "rb")
    except OSError:
        os.close(handle)
        raise


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file, or of an object on gs://, as `open_regular` opens it."""
    if storage.is_remote(path):
        return path.read_bytes()
    with open_regular(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """Returns the UTF-8 text of a file as `read_bytes` reads it."""
    return read_bytes(path).decode()


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal, as in the manifest of a dataset."""
    with open_regular(path) as file:
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

    Temporary files of processes that were killed are removed.

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
        lock = open_lock(folder / LOCK)
    except OSError as error:
        raise UserError(
            f"--{option}={folder} cannot be written ({error.strerror}); give another folder"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(busy) from None
        remove_leftovers(folder)
        yield


@contextmanager
def work_folder(out: Path, *, keep: str = "") -> Generator[Path]:
    """Yields `<out>.partial`, locked, in which a program builds the folder `out`.

    It is empty but for the folder `keep` of an interrupted run. The caller renames or removes it.

    Raises:
      UserError: the folder holds something else, cannot be written, or is in use.
    """
    work = out.with_name(f"{out.name}.partial")
    if work.is_symlink() or (work.exists() and not (work / LOCK).exists()):
        raise UserError(
            f"{work} is needed for unfinished work, but holds something else; rename it"
        )
    busy = f"another process is preparing --out={out}; wait for it or choose another folder"
    with locked(work, option="out", busy=busy):
        try:
            for path in work.iterdir():  # of an interrupted run
                if path.is_symlink() or not path.is_dir():
                    if path.name != LOCK:
                        path.unlink()
                elif path.name != keep:
                    shutil.rmtree(path)
        except OSError as error:
            raise UserError(
                f"{error.filename} of an interrupted run cannot be removed ({error.strerror}); "
                f"remove {work}"
            ) from None
        yield work
