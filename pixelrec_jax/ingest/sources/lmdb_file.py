"""The keys of an LMDB file and where their values lie, read without the LMDB library.

The library maps the file and trusts it: a damaged page number ends the process with SIGBUS. Here
all is read by position and checked. Format: mdb.c of LMDB 0.9 (version 1 of its data, 64 bit).
"""

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAGIC = 0xBEEFC0DE
HEADER = 16  # bytes before the content of a page
_PAGE = struct.Struct("<QHHHH")  # number, padding, flags, end of the places, start of the nodes
_META = struct.Struct("<IIQQ48s48sQQ")  # magic, version, -, -, free pages, keys, last page, number
_TREE = struct.Struct("<IHHQQQQQ")  # page size or -, flags, depth, numbers of pages, entries, root
_NODE = struct.Struct("<HHHH")  # low, high, flags, length of the key
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG = 1  # the value lies in pages of its own
_NONE = 2**64 - 1  # the root of an empty tree
_LONGEST_KEY = 511


class Value(NamedTuple):
    """Where a value lies in the file, in bytes."""

    start: int
    size: int


def read_keys(file: BinaryIO) -> dict[bytes, Value]:
    """Returns the place of each value by its key.

    Memory: some 200 bytes for each key, which has at least ten in the file. Each page is read once
    at most, whatever the pages say, and the values together are not longer than the file.

    Raises:
      ValueError: the file is not complete, or is damaged.
    """
    return _Reader(file).keys()


class _Reader:
    def __init__(self, file: BinaryIO):
        self._handle = file.fileno()
        self._length = os.fstat(self._handle).st_size
        first = self._meta(0)
        self._page_size = _TREE.unpack(first[4])[0]
        if self._page_size not in (2**n for n in range(9, 17)):
            raise ValueError(f"its pages are of {self._page_size:,} bytes")
        # Two pages are written in turn; the one with the higher number is the present one.
        newest = max(first, self._meta(self._page_size), key=lambda meta: meta[7])
        *_, self._entries, self._root = _TREE.unpack(newest[5])
        self._flags = _TREE.unpack(newest[5])[1]
        end = (newest[6] + 1) * self._page_size
        if end > self._length:
            raise ValueError(f"{self._length:,} of {end:,} bytes")

    def _read(self, start: int, size: int) -> bytes:
        if not 0 <= start <= self._length - size:
            raise ValueError(f"it refers to byte {start:,}, which it does not have")
        content = os.pread(self._handle, size, start)
        if len(content) < size:
            raise ValueError("it became shorter")
        return content

    def _meta(self, start: int) -> tuple:
        meta = _META.unpack(self._read(start + HEADER, _META.size))
        if meta[0] != MAGIC:
            raise ValueError(f"byte {start:,} does not begin a description")
        if meta[1] != 1:
            raise ValueError(f"its format has version {meta[1]}, expected 1")
        return meta

    def keys(self) -> dict[bytes, Value]:
        found: dict[bytes, Value] = {}
        if self._flags:
            raise ValueError("its keys are numbers or have several values")
        pages = [] if self._root == _NONE else [self._root]
        visited, total = 0, 0
        while pages:
            visited += 1
            if visited > self._length // self._page_size:
                raise ValueError("its pages lead in circles")
            start = pages.pop() * self._page_size
            page = self._read(start, self._page_size)
            flags = _PAGE.unpack_from(page)[2]
            if flags not in (_BRANCH, _LEAF):
                raise ValueError(f"the page at byte {start:,} is of an unknown kind")
            for place, (low, high, node_flags, length) in _nodes(page):
                if flags == _BRANCH:
                    pages.append(low | high << 16 | node_flags << 32)
                    continue
                data = place + _NODE.size + length
                value = Value(start + data, low | high << 16)
                if node_flags == _BIG:
                    value = self._big(page, data, value.size)
                elif node_flags or data + value.size > self._page_size:
                    raise ValueError(f"the page at byte {start:,} is damaged")
                total += value.size
                if total > self._length:
                    raise ValueError("its values are longer than the file")
                found[page[data - length : data]] = value
        if len(found) != self._entries:
            raise ValueError(f"{len(found):,} of {self._entries:,} keys were found")
        return found

    def _big(self, page: bytes, place: int, size: int) -> Value:
        """Returns where a value in pages of its own lies."""
        if place + 8 > len(page):
            raise ValueError("a value begins outside of its page")
        start = int.from_bytes(page[place : place + 8], "little") * self._page_size
        if _PAGE.unpack(self._read(start, _PAGE.size))[2] != _OVERFLOW:
            raise ValueError(f"the page at byte {start:,} does not hold a value")
        if start + HEADER + size > self._length:
            raise ValueError(f"the value at byte {start:,} does not end")
        return Value(start + HEADER, size)


def _nodes(page: bytes) -> Iterator[tuple[int, tuple[int, int, int, int]]]:
    """Yields place and header of the nodes of a page; raises `ValueError` if they overlap."""
    end = _PAGE.unpack_from(page)[3]
    if not HEADER <= end <= len(page) or end % 2:
        raise ValueError("a page claims more than it has")
    left = len(page) - end
    for (place,) in struct.iter_unpack("<H", page[HEADER:end]):
        if not end <= place <= len(page) - _NODE.size:
            raise ValueError("a key begins outside of its page")
        node = _NODE.unpack_from(page, place)
        left -= _NODE.size + node[3]
        if left < 0 or node[3] > _LONGEST_KEY or place + _NODE.size + node[3] > len(page):
            raise ValueError("the keys of a page are longer than the page")
        yield place, node
