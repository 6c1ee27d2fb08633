"""Temporary files and locks in folders that others may write to as well.

Names are random and files are new, so that a link that waits under a known name leads nowhere.
"""

import fcntl
import os
import re
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_NAME = re.compile(r"\.[0-9a-f]{16}\.tmp")
_NEW = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def temporary_file(folder: Path) -> Generator[Path]:
    """Yields the path of a new empty file in a folder; it is removed unless it was renamed.

    The file is locked meanwhile: by this, `remove_leftovers` knows files that are in use.
    """
    path = folder / f".{secrets.token_hex(8)}.tmp"
    handle = os.open(path, os.O_WRONLY | os.O_EXCL | _NEW, 0o666)
    try:
        with suppress(OSError):  # some network disks have no locks; a leftover then stays
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path
    finally:
        os.close(handle)
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of processes that were killed; others and links stay."""
    for entry in os.scandir(folder):
        if not (_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)):
            continue
        with suppress(OSError):  # in use, gone, or of somebody else
            handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
            finally:
                os.close(handle)


def open_lock(path: Path) -> TextIO:
    """Opens the file of a lock, which is created if it does not exist and is not changed.

    Raises `OSError` at once if it is a link, a pipe or something else than a file.
    """
    handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | _NEW, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(None, f"its {path.name} is not a file", str(path))
    return os.fdopen(handle, "r+")
