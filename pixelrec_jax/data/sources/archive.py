"""Tar and zip archives of <item_id>.jpg, in any folders; they are read in place."""

import os
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pixelrec_jax.data.sources.source import UNREADABLE, by_item_id, check_size
from pixelrec_jax.errors import UserError

Member = TypeVar("Member")


def _by_file_name(archive: Path, members: dict[str, Member]) -> dict[str, Member]:
    """Returns members by name without folders; two of one name would be a guess."""
    paths: dict[str, str] = {}
    for path in members:
        other = paths.setdefault(PurePosixPath(path).name, path)
        if other != path:
            raise UserError(
                f"--images={archive} has {other!r} and {path!r}, one item twice; keep one"
            )
    return {name: members[path] for name, path in paths.items()}


class TarImages:
    """The plain files of an uncompressed tar; links and devices do not count."""

    def __init__(self, path: Path):
        """Lists the tar at `path`; raises `UserError` if it is damaged."""
        try:
            with tarfile.open(path, "r:") as tar:
                # A later entry of the same path replaces an earlier one, as in unpacking.
                members = {m.name: (m.offset_data, m.size, m.mtime) for m in tar if _is_plain(m)}
        except (tarfile.TarError, EOFError) as error:
            raise UserError(f"--images={path} is no whole tar: {error}") from None
        self._members = by_item_id(_by_file_name(path, members))
        self._file = path.open("rb")

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have an image."""
        return self._members.keys()

    def fingerprint(self, item_id: str) -> str:
        """Place, size and time of the entry."""
        return "{} {} {}".format(*self._members[item_id])

    def read(self, item_id: str) -> bytes:
        """Returns the file; raises `ValueError` with the reason."""
        start, size, _ = self._members[item_id]
        check_size(size)
        try:
            content = os.pread(self._file.fileno(), size, start)
        except OSError as error:
            raise ValueError(f"{UNREADABLE} ({error.strerror})") from None
        if len(content) < size:
            raise ValueError(f"{UNREADABLE} (the tar ends before)")
        return content


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


class ZipImages:
    """The files of a zip."""

    def __init__(self, path: Path):
        """Lists the zip at `path`; raises `UserError` if it is damaged."""
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(f"--images={path} is no whole zip: {error}") from None
        members = {m.filename: m for m in self._zip.infolist() if not m.is_dir()}
        self._members = by_item_id(_by_file_name(path, members))

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have an image."""
        return self._members.keys()

    def fingerprint(self, item_id: str) -> str:
        """Checksum and size of the file."""
        member = self._members[item_id]
        return f"{member.CRC} {member.file_size}"

    def read(self, item_id: str) -> bytes:
        """Returns the file; raises `ValueError` with the reason."""
        member = self._members[item_id]
        check_size(member.file_size)  # zipfile stops there, whatever the compressed data hold
        try:
            return self._zip.read(member)
        # RuntimeError: encrypted; NotImplementedError: a rare compression.
        except (OSError, RuntimeError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{UNREADABLE} ({error})") from None
