"""LMDBs of the reference: read without running code, and only when whole."""

import pickle
import tracemalloc

import numpy as np
import pytest

from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.system.errors import UserError
from tests.ingest.pictures import picture, write_lmdb


class LMDB_Image:  # noqa: N801 (the name in the reference's files)
    def __init__(self, pixels, item_id):
        self.channels, self.size = pixels.shape[2], pixels.shape[:2]
        self.image, self.id = pixels.tobytes(), item_id


LMDB_Image.__module__ = "__main__"  # the reference's script is run as a program


def pickled(thing, monkeypatch):
    monkeypatch.setattr("__main__.LMDB_Image", LMDB_Image, raising=False)
    return pickle.dumps(thing)


def test_an_lmdb_of_the_reference(tmp_path, monkeypatch):
    _, pixels = picture(0)
    values = {
        "i7": pickled(LMDB_Image(pixels, "i7"), monkeypatch),
        "__keys__": pickle.dumps([b"i7", b"i8"]),
        "__len__": pickle.dumps(2),
    }
    for path, subdir in ((tmp_path / "a.lmdb", False), (tmp_path / "b", True)):
        write_lmdb(path, values, subdir=subdir)
        images = open_source(path)
        assert set(images.ids) == {"i7"}
        np.testing.assert_array_equal(images.read("i7"), pixels)


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_lmdb_runs_no_code(tmp_path, monkeypatch):
    _, pixels = picture(0)
    short = LMDB_Image(pixels, "short")
    short.image = short.image[:-1]
    values = {
        "harm": pickle.dumps(Harm(tmp_path / "harm")),
        "array": pickle.dumps(pixels),
        "short": pickled(short, monkeypatch),
        "text": b"no pickle",
        "none": pickle.dumps(None),
    }
    write_lmdb(tmp_path / "x", values)
    images = open_source(tmp_path / "x")
    for item_id in values:
        with pytest.raises(ValueError, match="not an image of the reference's LMDB"):
            images.read(item_id)
    assert not (tmp_path / "harm").exists()


def test_an_lmdb_costs_no_more_than_its_size_and_changes_nothing(tmp_path, monkeypatch):
    _, pixels = picture(0)
    name = b"c__main__\nLMDB_Image\n"
    state = b"}(X\x04\x00\x00\x00sizeK\x01K\x01\x86X\x05\x00\x00\x00imageC\x03abcu"
    sizes = {"minus": (-1, 7), "none": (0, 0), "text": ("a", "b"), "one": (9,), "huge": (2**40, 1)}
    values = {
        "long": b"\x96" + (2**32).to_bytes(8, "little") + b".",
        "deep": b"(" * 5_000_000 + b"l" * 5_000_000 + b".",
        "class": name + state + b"b.",
        "set twice": name + b")\x81" + state + b"b" + state + b"b.",
        "copies": name + b")\x81" * 2000 + b".",
        "other": pickle.dumps({"size": (7, 9), "image": pixels.tobytes()}),
        "without": name + b")\x81.",
    }
    for key, size in sizes.items():
        image = LMDB_Image(pixels, key)
        image.size = size
        values[key] = pickled(image, monkeypatch)
    values["whole"] = pickled(LMDB_Image(pixels, "whole"), monkeypatch)
    write_lmdb(tmp_path / "x", values)
    images = open_source(tmp_path / "x")
    tracemalloc.start()
    for item_id in values.keys() - {"whole"}:
        with pytest.raises(ValueError, match="not an image of the reference's LMDB") as error:
            images.read(item_id)
        assert "\n" not in str(error.value)
        np.testing.assert_array_equal(images.read("whole"), pixels)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


@pytest.mark.parametrize("protocol", range(6))
def test_an_lmdb_of_any_protocol_of_bytes(tmp_path, monkeypatch, protocol):
    _, pixels = picture(0)
    monkeypatch.setattr("__main__.LMDB_Image", LMDB_Image, raising=False)
    write_lmdb(tmp_path / "x", {"i1": pickle.dumps(LMDB_Image(pixels, "i1"), protocol)})
    if protocol < 3:  # bytes are then a call of a function
        with pytest.raises(ValueError, match="it names"):
            open_source(tmp_path / "x").read("i1")
    else:
        np.testing.assert_array_equal(open_source(tmp_path / "x").read("i1"), pixels)


def test_an_lmdb_that_is_cut_off_is_refused_and_one_may_be_opened_again(tmp_path, monkeypatch):
    _, pixels = picture(0, size=(80, 70))
    values = {f"i{n}": pickled(LMDB_Image(pixels, "x"), monkeypatch) for n in range(9)}
    write_lmdb(tmp_path / "x", values)
    for _ in range(2):
        open_source(tmp_path / "x").close()
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):
        with pytest.raises(UserError, match=r"is not a complete LMDB \([\d,]+ of [\d,]+ bytes\)"):
            open_source(tmp_path / "x")
