"""A folder of <item_id>.jpg."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from pixelrec_jax.ingest.sources.source import DamagedImageError, by_item_id, check_size
from pixelrec_jax.system.files import open_regular


class FolderImages:
    """The files of one folder; folders in it are ignored."""

    def __init__(self, path: Path):
        """Lists the folder at `path`; raises `OSError` if it cannot be read."""
        with os.scandir(path) as entries:
            files = {entry.name: entry.path for entry in entries if _is_file(entry)}
        self._paths = by_item_id(files)

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have one image."""
        return self._paths.keys()

    @property
    def ambiguous(self) -> Mapping[str, str]:
        """Empty: an item with several suffixes has the first of them."""
        return {}

    def fingerprint(self, item_id: str) -> str:
        """Returns the name, size and time of the file."""
        path = self._paths[item_id]
        try:
            status = os.stat(path)
        except OSError:  # `read` will say why
            return ""
        return f"{os.path.basename(path)} {status.st_size} {status.st_mtime_ns}"

    def read(self, item_id: str) -> bytes:
        """Returns the file; raises `ValueError` with the reason."""
        try:
            with open_regular(self._paths[item_id]) as file:
                check_size(os.fstat(file.fileno()).st_size)
                return file.read()
        except OSError as error:
            raise DamagedImageError(error.strerror or str(error)) from None

    def close(self) -> None:
        """Does nothing: no file stays open."""


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False
