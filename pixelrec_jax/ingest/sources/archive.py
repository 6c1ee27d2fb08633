"""Tar and zip archives of <item_id>.jpg, in any folders; they are read without unpacking."""

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

from pixelrec_jax.ingest.sources.source import DamagedImageError, check_size, index
from pixelrec_jax.system.errors import UserError

Member = TypeVar("Member")
_CHUNK = 2**20


class _Archive(Generic[Member]):
    """The images among the members of an archive, by item id."""

    def __init__(self, path: Path, members: dict[str, Member]):
        """Sorts members by path; an item with images in two folders is ambiguous."""
        self._members, self._ambiguous = index(members, path)

    @property
    def ids(self) -> Collection[str]:
        """The item ids that have one image."""
        return self._members.keys()

    @property
    def ambiguous(self) -> Mapping[str, str]:
        """A line on each item id that has images in several folders."""
        return self._ambiguous


class TarImages(_Archive[tuple[int, int, float]]):
    """The plain files of an uncompressed tar; links and devices are ignored."""

    def __init__(self, path: Path):
        """Lists the tar at `path`; raises `UserError` if it is damaged."""
        self._file = path.open("rb")
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                # A later entry with the same path replaces an earlier one, as in unpacking.
                members = {m.name: (m.offset_data, m.size, m.mtime) for m in tar if _is_plain(m)}
                _check_end(self._file, tar.offset)
        except (tarfile.TarError, EOFError) as error:
            self.close()
            raise UserError(
                f"--images={path} is not a complete tar ({error}); copy it again"
            ) from None
        self._stamp = os.fstat(self._file.fileno()).st_mtime_ns
        super().__init__(path, members)

    def fingerprint(self, item_id: str) -> str:
        """Returns the offset, size and time of the entry, and the time of the tar."""
        return "{} {} {}".format(*self._members[item_id]) + f" {self._stamp}"

    def read(self, item_id: str) -> bytes:
        """Returns the file; raises `ValueError` with the reason."""
        start, size, _ = self._members[item_id]
        check_size(size)
        try:
            content = os.pread(self._file.fileno(), size, start)
        except OSError as error:
            raise DamagedImageError(error.strerror or str(error)) from None
        if len(content) < size:
            raise DamagedImageError("the tar ends too early")
        return content

    def close(self) -> None:
        """Closes the tar."""
        self._file.close()


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raises `TarError` unless the rest is zeros: tarfile takes a damaged header for the end."""
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.TarError(f"entries after byte {offset:,} are damaged")
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.TarError(f"it ends at byte {offset:,} without its end mark")


class ZipImages(_Archive[zipfile.ZipInfo]):
    """The plain files of a zip."""

    def __init__(self, path: Path):
        """Lists the zip at `path`; raises `UserError` if it is damaged."""
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UserError(
                f"--images={path} is not a complete zip ({error}); copy it again"
            ) from None
        # Zips of .NET have a backslash between folders.
        members = {m.filename.replace("\\", "/"): m for m in self._zip.infolist() if _is_file(m)}
        super().__init__(path, members)

    def fingerprint(self, item_id: str) -> str:
        """Returns the checksum and size of the file."""
        member = self._members[item_id]
        return f"{member.CRC} {member.file_size}"

    def read(self, item_id: str) -> bytes:
        """Returns the file; raises `ValueError` with the reason."""
        member = self._members[item_id]
        check_size(member.file_size)
        if member.flag_bits & 1:
            raise ValueError("encrypted")
        # zipfile decompresses other methods as a whole, whatever size they claim.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("compressed otherwise than by deflate")
        try:
            with self._zip.open(member) as file:
                return file.read(member.file_size)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DamagedImageError(str(error)) from None

    def close(self) -> None:
        """Closes the zip."""
        self._zip.close()


def _is_file(member: zipfile.ZipInfo) -> bool:
    return not member.is_dir() and not stat.S_ISLNK(member.external_attr >> 16)
