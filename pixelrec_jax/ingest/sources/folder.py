"""A folder of <item_id>.jpg, in any folders of it."""

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from pixelrec_jax.ingest.sources.source import DamagedImageError, check_size, index
from pixelrec_jax.system.files import open_regular


class FolderImages:
    """The files of a folder and of the folders in it.

    Links to folders are not followed, and those to files only within the folder. Memory: some
    hundred bytes for each file, whatever its depth; an image is read as a whole.
    """

    def __init__(self, path: Path):
        """Lists the folder at `path`; raises `OSError` if a folder in it cannot be read."""
        root = os.path.realpath(path)
        files, outside = {}, {}
        for name, entry in _files(path):
            if entry.is_symlink() and not os.path.realpath(entry).startswith(root + os.sep):
                outside[name] = (
                    f"--images={path} has '{name}', a link that leads out of the folder; put the "
                    "file itself there"
                )
            else:
                files[name] = entry.path
        self._paths, self._ambiguous = index(files, path)
        self._ambiguous |= {
            item_id: line
            for item_id, line in index(outside, path)[0].items()
            if item_id not in self._paths
        }

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have one image."""
        return self._paths.keys()

    @property
    def ambiguous(self) -> Mapping[str, str]:
        """A line on each item id with images in two folders, or with a link out of the folder."""
        return self._ambiguous

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


def _files(root: Path) -> Iterator[tuple[str, os.DirEntry]]:
    """Yields the path below the root and the entry of all files, without recursion."""
    folders = [("", str(root))]
    while folders:
        below, folder = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append((f"{below}{entry.name}/", entry.path))
                elif _is_file(entry):
                    yield below + entry.name, entry


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link that leads to itself
        return False
