"""Image shards: order, resumption, verification."""

import io
from typing import ClassVar

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from pixelrec_jax.data import images
from pixelrec_jax.data.images import READER_OPTIONS
from pixelrec_jax.ingest import image_shards
from pixelrec_jax.ingest.sources.source import DamagedImageError
from pixelrec_jax.system.errors import UserError


class Pictures:
    """A source of images of one colour each; it records which ids are read."""

    def __init__(self, ids):
        self.ids, self.version, self.read_ids, self.broken = set(ids), {}, [], {}

    ambiguous: ClassVar = {}

    def fingerprint(self, item_id):
        return str(self.version.get(item_id, 0))

    def read(self, item_id):
        self.read_ids.append(item_id)
        if item_id in self.broken:
            raise self.broken[item_id]
        file = io.BytesIO()
        color = (int(item_id), self.version.get(item_id, 0), 0)
        Image.new("RGB", (2, 2), color).save(file, "PNG")
        return file.getvalue()


IDS = [str(number) for number in range(10)]


@pytest.fixture(autouse=True)
def _four_to_a_shard(monkeypatch):
    for module in (images, image_shards):
        monkeypatch.setattr(module, "RECORDS_PER_SHARD", 4)


def write(folder, pictures, ids=IDS):
    return image_shards.write_shards(folder, pictures, ids, size=2)


def records(folder):
    found = []
    for path in sorted(folder.glob("*.array_record")):
        reader = array_record_module.ArrayRecordReader(str(path), READER_OPTIONS)
        found += [reader.read([i])[0] for i in range(reader.num_records())]
    return found


def test_record_i_is_image_i(tmp_path):
    assert write(tmp_path / "x", Pictures(IDS)) == {}
    found = records(tmp_path / "x")
    assert [record[0] for record in found] == list(range(10))
    assert {len(record) for record in found} == {2 * 2 * 3}
    files = image_shards.digests(tmp_path / "x")
    assert list(files) == [f"0000{n}.array_record" for n in range(3)]
    paths = sorted((tmp_path / "x").iterdir())
    assert sorted(files) == [path.name for path in paths if path.suffix != ".json"]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    pictures = Pictures(IDS)
    pictures.broken["9"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", pictures)
    done = {path.name for path in (tmp_path / "x").glob("*.json")}
    assert "00002.array_record.json" not in done
    pictures.broken, pictures.read_ids = {}, []
    assert write(tmp_path / "x", pictures) == {}
    expected = {
        item_id for item_id in IDS if f"0000{int(item_id) // 4}.array_record.json" not in done
    }
    assert set(pictures.read_ids) == expected
    whole = tmp_path / "whole"
    write(whole, Pictures(IDS))
    assert image_shards.digests(tmp_path / "x") == image_shards.digests(whole)


@pytest.mark.parametrize("change", ["image", "new image", "order", "size", "damage", "fewer"])
def test_only_what_would_differ_is_written_again(tmp_path, change):
    pictures, ids, size = Pictures(IDS[:-1]), IDS, 2
    assert write(tmp_path / "x", pictures) == {9: "missing"}
    pictures.read_ids = []
    assert write(tmp_path / "x", pictures) == {9: "missing"}
    assert pictures.read_ids == []
    if change == "image":
        pictures.version["5"], expected = 1, {*"4567"}
    elif change == "new image":
        pictures.ids.add("9")
        expected = {*"89"}
    elif change == "order":
        ids, expected = ["1", "0", *IDS[2:]], {*"0123"}
    elif change == "size":
        size, expected = 3, {*"012345678"}
    elif change == "fewer":
        ids, expected = IDS[:6], {*"45"}
    else:
        path = tmp_path / "x" / "00000.array_record"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        expected = {*"0123"}
    image_shards.write_shards(tmp_path / "x", pictures, ids, size=size)
    assert set(pictures.read_ids) == expected
    fresh = Pictures(pictures.ids)
    fresh.version = pictures.version
    image_shards.write_shards(tmp_path / "y", fresh, ids, size=size)
    assert records(tmp_path / "x") == records(tmp_path / "y")
    assert image_shards.digests(tmp_path / "x") == image_shards.digests(tmp_path / "y")


def test_what_could_not_be_read_is_tried_again_and_what_cannot_be_decoded_is_not(tmp_path):
    pictures = Pictures(IDS)
    pictures.broken = {"1": DamagedImageError("busy"), "5": ValueError("no image")}
    assert write(tmp_path / "x", pictures) == {1: "cannot be read (busy)", 5: "no image"}
    pictures.broken, pictures.read_ids = {}, []
    assert write(tmp_path / "x", pictures) == {5: "no image"}
    assert set(pictures.read_ids) == {*"0123"}


def test_a_disk_that_returns_something_else_is_noticed(tmp_path, monkeypatch):
    class Forgetful(array_record_module.ArrayRecordWriter):
        def write(self, record):
            super().write(bytes([record[0] ^ 1]) + record[1:])

    monkeypatch.setattr(image_shards.array_record_module, "ArrayRecordWriter", Forgetful)
    with pytest.raises(UserError, match=r"array_record' reads back differently"):
        write(tmp_path / "x", Pictures(IDS))
    assert not list((tmp_path / "x").glob("*.json"))


def test_pixels_are_kept_without_loss(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), np.uint8)
    pictures = Pictures(IDS[:1])
    pictures.read = lambda _: pixels
    image_shards.write_shards(tmp_path / "x", pictures, IDS[:1], size=None)
    np.testing.assert_array_equal(images.decode(records(tmp_path / "x")[0], None), pixels)
    image_shards.write_shards(tmp_path / "y", pictures, IDS[:1], size=2)
    resized = Image.fromarray(pixels).resize((2, 2), Image.Resampling.BILINEAR)
    assert records(tmp_path / "y") == [resized.tobytes()]
