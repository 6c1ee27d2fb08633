"""Files that a run reads for hours, which must stay what they were when it began."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import digest


class WatchedFile:
    """A file that a run reads again and again, with a digest of its content.

    A look at the file's metadata shows whether anyone has touched it: its place on the disk, its
    size, and the times of its last changes. Only then is the content read again, so that a look
    costs nothing and a copy of the same file in its place is no fault.
    """

    def __init__(self, path: Path, content: str, measure: Callable[[Path], str] = digest):
        """Takes a file whose content is known to be the one of this digest.

        Args:
          path: the file.
          content: its digest.
          measure: returns the digest of a file.
        """
        self.path, self._content, self._measure = path, content, measure
        self._seen = _metadata(path)

    def check(self) -> None:
        """Raises `UserError` if the file is gone or holds something else."""
        now = _metadata(self.path)
        if now == self._seen:
            return
        try:
            same = now is not None and self._measure(self.path) == self._content
        except (OSError, ValueError, UserError):
            same = False
        if not same:
            fault = "is gone" if now is None else "has other content"
            raise UserError(
                f"{self.path} {fault} since this run started; put back what was there, and start "
                "the same command again to continue from the latest checkpoint"
            )
        self._seen = now


def check_all(files: Iterable[WatchedFile]) -> None:
    """Raises `UserError` if one of these files is gone or holds something else."""
    for file in files:
        file.check()


def _metadata(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
