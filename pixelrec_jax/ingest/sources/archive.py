"""Tar and zip archives of <item_id>.jpg, in any folders; they are read without unpacking."""

import os
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, Generic, TypeVar, cast

from pixelrec_jax.ingest.sources.source import DamagedImageError, check_size, damaged, index
from pixelrec_jax.system.foreign import clean_line

Member = TypeVar("Member")
_CHUNK = 2**20
_LARGEST_HEADER = 2**20  # bytes of one header of a tar; names have a few hundred
_MOST_GLOBAL_HEADERS = 100  # of a tar


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


def is_tar(path: Path) -> bool:
    """Returns whether a file begins with the header of a tar."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.TarError, ValueError):
        return False
    return True


class TarImages(_Archive[tuple[int, int, float]]):
    """The files of an uncompressed tar, also under their hard links; other links are ignored.

    Memory: some 300 bytes for each entry, which has 512 in the file; no header of an entry is
    larger than `_LARGEST_HEADER`. An image is read as a whole.
    """

    def __init__(self, path: Path):
        """Lists the tar at `path`; raises `UserError` if it is damaged."""
        self._file = path.open("rb")
        try:
            with damaged(path, "tar"):
                members = _members(self._file)
        except BaseException:
            self.close()
            raise
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
        except (OSError, OverflowError) as error:
            raise DamagedImageError(getattr(error, "strerror", None) or str(error)) from None
        if len(content) < size:
            raise DamagedImageError("the tar ends too early")
        return content

    def close(self) -> None:
        """Closes the tar."""
        self._file.close()


def _members(file: BinaryIO) -> dict[str, tuple[int, int, float]]:
    """Returns offset, size and time of the files in a tar by path."""
    members: dict[str, tuple[int, int, float]] = {}
    with tarfile.open(fileobj=cast(IO[bytes], _Headers(file)), mode="r:") as tar:
        before = -1
        while (member := tar.next()) is not None:
            if tar.offset <= before or member.size < 0:
                raise tarfile.TarError(f"the entry at byte {member.offset:,} does not end")
            if len(tar.pax_headers) > _MOST_GLOBAL_HEADERS:  # each later entry has a copy
                raise tarfile.TarError(f"it has over {_MOST_GLOBAL_HEADERS:,} global headers")
            before = tar.offset
            cast(Any, tar).members.clear()  # public, but not declared
            name = posixpath.normpath(member.name)
            # A later entry with the same path replaces an earlier one, as in unpacking.
            if member.isreg() and not member.issparse():
                members[name] = member.offset_data, member.size, member.mtime
            elif member.islnk() and (target := posixpath.normpath(member.linkname)) in members:
                members[name] = members[target]
        _check_end(file, tar.offset)
    return members


class _Headers:
    """A file in which tarfile reads the headers of entries, and nothing longer than these."""

    def __init__(self, file: BinaryIO):
        self.name, self.seek, self.tell, self._read = file.name, file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        """Returns the next bytes; raises `TarError` if they are more than a header may have."""
        if size > _LARGEST_HEADER:
            raise tarfile.TarError(f"a header has {size:,} bytes")
        return self._read(size)


def _check_end(file: BinaryIO, offset: int) -> None:
    """Raises `TarError` unless the rest is zeros: tarfile takes a damaged header for the end."""
    file.seek(offset)
    end = file.read(tarfile.BLOCKSIZE)
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.TarError(f"entries after byte {offset:,} are damaged")
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.TarError(f"it ends at byte {offset:,} without its end mark")


def is_zip(path: Path) -> bool:
    """Returns whether a file ends as a zip does."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one of several parts, for example
        return True


class ZipImages(_Archive[zipfile.ZipInfo]):
    """The plain files of a zip.

    Memory: some kilobyte for each entry, which has at least 46 bytes in the file; a file that is
    read takes the size that its entry claims, up to `source.LARGEST`.
    """

    def __init__(self, path: Path):
        """Lists the zip at `path`; raises `UserError` if it is damaged."""
        with damaged(path, "zip"):
            self._zip = zipfile.ZipFile(path)
            # Zips of .NET have a backslash between folders.
            names = {m.filename.replace("\\", "/"): m for m in self._zip.infolist() if m.filename}
            members = {name: member for name, member in names.items() if _is_file(member)}
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
        # For damaged bytes zipfile raises nearly anything.
        except Exception as error:
            raise DamagedImageError(clean_line(str(error), width=200)) from None

    def close(self) -> None:
        """Closes the zip."""
        self._zip.close()


def _is_file(member: zipfile.ZipInfo) -> bool:
    return not member.is_dir() and not stat.S_ISLNK(member.external_attr >> 16)
