"""Headers of .npy files that lie are one error of one kind, and take no memory."""

import struct

import numpy as np
import pytest

from pixelrec_jax.system import arrays
from pixelrec_jax.system.arrays import map_array

HEADERS = {
    "negative": "(-5, 3)",
    "two negatives": "(-5, -3)",
    "more than a file has": f"({10**9}, {10**9})",
    "beyond 64 bits": f"({2**70}, 3)",
    "overflow": f"({2**32}, {2**32})",
    "text": "('a',)",
    "truth": "(True,)",
    "deep": "(" * 3000,
    "code": "().__class__",
}


def written(path, shape, descr="'<f4'"):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))
    return path


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_lies_is_a_value_error(tmp_path, header):
    with pytest.raises(ValueError, match=r"\S"):
        map_array(written(tmp_path / "x.npy", HEADERS[header]))


@pytest.mark.parametrize("descr", ["'O'", "'<f9'", "[('a'", "'<f4' + 1"])
def test_types_that_are_not_numbers_are_refused(tmp_path, descr):
    with pytest.raises(ValueError, match=r"\S"):
        map_array(written(tmp_path / "x.npy", "(2,)", descr))


@pytest.mark.parametrize("mapped_from", [1, 1000])
def test_only_a_large_file_is_mapped(tmp_path, monkeypatch, mapped_from):
    monkeypatch.setattr(arrays, "_MAPPED_FROM", mapped_from)
    np.save(tmp_path / "x.npy", np.arange(6).reshape(2, 3))
    array = map_array(tmp_path / "x.npy")
    assert isinstance(array, np.memmap) == (mapped_from == 1)
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
