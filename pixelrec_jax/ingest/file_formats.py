"""Formats of table files, told by their first bytes and never by their names."""

import os
import re
from pathlib import Path

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import open_regular

COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")  # how gzip and zstd begin
PARQUET, ARROW = b"PAR1", b"ARROW1"
# Formats that are not read: how a file begins, what it is, and what to do.
_OTHERS = {
    b"\xfd7zXZ\0": ("compressed with xz", "decompress it (unxz)"),
    b"BZh": ("compressed with bzip2", "decompress it (bunzip2)"),
    b"PK\x03\x04": ("a zip or an Excel workbook", "unpack it, or save it as CSV"),
    b"7z\xbc\xaf": ("a 7-Zip archive", "unpack it"),
    b"\xd0\xcf\x11\xe0": ("an Excel workbook", "save it as CSV"),
    b"\xff\xfe": ("UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    b"\xff\xff\xff\xff": ("a stream of Arrow", "write an Arrow file"),
    b"FEA1": ("Feather of version 1", "write version 2"),
    b"PARE": ("an encrypted Parquet file", "decrypt it"),
    b"\x89HDF": ("HDF5", "write Parquet or CSV"),
    b"SQLite format 3\0": ("a SQLite database", "export its table as CSV"),
    b"\x80": ("a Python pickle, which could run code", "write Parquet or CSV"),
}


def columnar(path: Path) -> str | None:
    """Returns "Parquet" or "Arrow" if a file begins so, otherwise None.

    Raises `UserError` if such a file does not end as it began: it is cut off.
    """
    with open_regular(path) as file:
        head = file.read(max(len(PARQUET), len(ARROW)))
        for magic, kind in ((PARQUET, "Parquet"), (ARROW, "Arrow")):
            if not head.startswith(magic):
                continue
            file.seek(-len(magic), os.SEEK_END)
            if file.tell() == 0 or file.read() != magic:
                raise UserError(f"{str(path)!r} is a {kind} file that is cut off; copy it again")
            return kind
    return None


def check_text(head: bytes, name: str) -> None:
    """Raises `UserError` unless bytes can begin a CSV: UTF-8 in lines.

    Args:
      head: the first bytes of the file, decompressed.
      name: what messages call the file.
    """
    for magic, (what, remedy) in _OTHERS.items():
        if head.startswith(magic):
            raise UserError(f"{name} is {what}; {remedy}")
    if head.startswith((PARQUET, ARROW)):
        raise UserError(f"{name} is a Parquet or Arrow file; give a CSV file")
    line = re.split(rb"[\r\n]", head.lstrip(b"\r\n"), maxsplit=1)[0]
    if b"\0" in line:
        wide = (b"\0" in line[::2]) != (b"\0" in line[1::2])
        what = "UTF-16 without its mark" if wide else "not text"
        raise UserError(f"{name} is {what}; give UTF-8 text")
    if b"\r" in head and b"\n" not in head:
        raise UserError(
            f"{name} has lines that end with CR alone, as on old Macs; convert it (tr '\\r' '\\n')"
        )
