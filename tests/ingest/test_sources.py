"""Image sources: every kind gives the same pictures, and none of them leads out of itself."""

import io
import os
import pickle
import tarfile
import tracemalloc
import zipfile

import lmdb
import numpy as np
import pytest
from PIL import Image

from pixelrec_jax.ingest.image_shards import write_shards
from pixelrec_jax.ingest.sources import open_source, source
from pixelrec_jax.system.errors import UserError


def picture(seed, size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue(), pixels


class LMDB_Image:  # noqa: N801 (the name in the reference's files)
    def __init__(self, pixels, item_id):
        self.channels, self.size = pixels.shape[2], pixels.shape[:2]
        self.image, self.id = pixels.tobytes(), item_id


LMDB_Image.__module__ = "__main__"  # the reference's script is run as a program


def pickled(thing, monkeypatch):
    monkeypatch.setattr("__main__.LMDB_Image", LMDB_Image, raising=False)
    return pickle.dumps(thing)


def write_lmdb(path, values, *, subdir=False):
    with lmdb.open(str(path), subdir=subdir, map_size=2**24) as env, env.begin(write=True) as txn:
        for key, value in values.items():
            txn.put(key.encode(), value)


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_files_by_item_id(tmp_path, kind):
    names = ("covers/i1.png", "covers/i2.PNG", "covers/i2.txt", "covers/b.c.png", "covers/i1.webp")
    contents = {name: picture(seed)[0] for seed, name in enumerate(names)}
    path = tmp_path / "covers"
    if kind == "folder":
        path.mkdir()
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
        (path / "d.png").mkdir()
        (path / "loop.jpg").symlink_to(path / "loop.jpg")
    elif kind == "zip":
        path = tmp_path / "x.bin"  # told by content
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)
    else:
        path = tmp_path / "x.bin"
        with tarfile.open(path, "w") as archive:
            for name, content in contents.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    images = open_source(path)
    assert set(images.ids) == {"i1", "i2", "b.c"}
    assert images.read("i1") == contents["covers/i1.png"]  # png before webp
    assert images.read("i2") == contents["covers/i2.PNG"]
    before = images.fingerprint("i1")
    assert before != images.fingerprint("i2")
    assert open_source(path).fingerprint("i1") == before


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


def test_archives_lead_nowhere(tmp_path):
    content, _ = picture(0)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("/etc/a.png", tarfile.REGTYPE), ("../../b.png", tarfile.REGTYPE)):
            member = tarfile.TarInfo(name)
            member.size, member.type = len(content), kind
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("c.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        device = tarfile.TarInfo("d.png")
        device.type = tarfile.CHRTYPE
        archive.addfile(device)
    images = open_source(tmp_path / "x.tar")
    assert set(images.ids) == {"a", "b"}  # looked up by name, nothing is written anywhere
    assert images.read("b") == content


def test_one_item_twice_in_an_archive_is_an_error(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("old/a.png", b"1")
        archive.writestr("new/a.png", b"2")
        archive.writestr("new/b.png", b"3")
    images = open_source(tmp_path / "x.zip")
    assert set(images.ids) == {"b"}
    with pytest.raises(UserError, match=r"'old/a.png' and 'new/a.png', one item twice"):
        write_shards(tmp_path / "shards", images, ["b", "a"], size=None)
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_only_images_of_an_archive_are_compared(tmp_path, kind):
    content, _ = picture(0)
    others = (".DS_Store", "Thumbs.db", "README.txt", "README", "i1.txt", "._x.png")
    names = ["a/i1.png", "b/i2.png", *(f"{place}/{name}" for place in "abc" for name in others)]
    if kind == "tar":
        tar_of(tmp_path / "x", names)
    else:
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            for name in names:
                archive.writestr(name, content)
    images = open_source(tmp_path / "x")
    assert set(images.ids) == {"i1", "i2"}
    assert images.ambiguous.keys() == {"._x"}  # as macOS writes beside x.png; no item is named so
    assert write_shards(tmp_path / "shards", images, ["i1", "i2"], size=None) == {}
    assert images.read("i1") == content


def test_too_large_files_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "LARGEST", 10)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.png").write_bytes(b"x" * 11)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"x" * 11)
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "f" / "a.png", "a.png")
    for name in ("f", "x.zip", "x.tar"):
        with pytest.raises(ValueError, match=r"too large \(11 bytes\)"):
            open_source(tmp_path / name).read("a")


def tar_of(path, names, mtime=0):
    with tarfile.open(path, "w") as archive:
        for seed, name in enumerate(names):
            member = tarfile.TarInfo(name)
            content, _ = picture(seed)
            member.size, member.mtime = len(content), mtime
            archive.addfile(member, io.BytesIO(content))
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("damage", ["between", "in a header", "flipped", "zeroed"])
def test_a_damaged_tar_is_not_taken_for_a_short_one(tmp_path, damage):
    path = tmp_path / "x.tar"
    whole = tar_of(path, [f"{n}.png" for n in range(6)])
    with tarfile.open(path) as archive:
        start = archive.getmembers()[3].offset
    if damage == "between":
        whole = whole[:start]
    elif damage == "in a header":
        whole = whole[: start + 100]
    elif damage == "flipped":
        whole[start + 5] ^= 1
    else:
        whole[start : start + 512] = bytes(512)
    path.write_bytes(whole)
    with pytest.raises(UserError, match="is not a complete tar"):
        open_source(path)


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("other.png", b"1")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        archive.addfile(member)
        archive.add(tmp_path / "z.zip", "z.zip")
    assert set(open_source(tmp_path / "x.tar").ids) == {"a"}


def test_of_zips_only_what_decompresses_within_bounds_is_read(tmp_path):
    path = tmp_path / "x.zip"
    kinds = {"stored": 0, "deflated": 8, "bz2": 12, "lzma": 14}
    with zipfile.ZipFile(path, "w") as archive:
        for name, kind in kinds.items():
            archive.writestr(f"{name}.png", b"x" * 1000, kind)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    images = open_source(path)
    assert set(images.ids) == set(kinds)
    assert images.read("stored") == images.read("deflated") == b"x" * 1000
    for name in ("bz2", "lzma"):
        with pytest.raises(ValueError, match="compressed otherwise than by deflate"):
            images.read(name)
    images._members["deflated"].file_size = 100  # what it claims, and less than it is
    with pytest.raises(ValueError, match="Bad CRC"):
        images.read("deflated")
    images._members["stored"].flag_bits |= 1
    with pytest.raises(ValueError, match="encrypted"):
        images.read("stored")


@pytest.mark.parametrize("kind", ["folder", "folder of the same size", "tar", "zip", "lmdb"])
def test_the_fingerprint_of_a_changed_image_changes(tmp_path, monkeypatch, kind):
    path, found = tmp_path / "x", []
    for version in range(2):
        content = bytes([version]) * 9
        if kind.startswith("folder"):
            path.mkdir(exist_ok=True)
            (path / "a.png").write_bytes(content + b"x" * version * (kind == "folder"))
            same_time = kind == "folder"
            os.utime(path / "a.png", ns=(1, 1 if same_time else 1 + version))
        elif kind == "zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("a.png", content)
        elif kind == "tar":
            with tarfile.open(path, "w") as archive:
                member = tarfile.TarInfo("a.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            os.utime(path, ns=(version, version))
        else:
            write_lmdb(path, {"a": content}, subdir=True)
            os.utime(path / "data.mdb", ns=(version, version))
            os.utime(path, ns=(0, 0))
        images = open_source(path)
        found.append(images.fingerprint("a"))
        images.close()
    assert found[0] != found[1]


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


def test_damaged_and_foreign_files(tmp_path):
    content, _ = picture(0)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", content)
    whole = bytearray((tmp_path / "x.zip").read_bytes())
    whole[60] ^= 1
    (tmp_path / "x.zip").write_bytes(whole)
    with pytest.raises(ValueError, match=r"cannot be read \(Bad CRC"):
        open_source(tmp_path / "x.zip").read("a")

    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    cut = (tmp_path / "x.tar").read_bytes()[:600]
    (tmp_path / "x.tar").write_bytes(cut)
    with pytest.raises(UserError, match="not a complete tar"):
        open_source(tmp_path / "x.tar")

    (tmp_path / "y").write_bytes(bytes(16) + bytes.fromhex("dec0efbe") + bytes(50))
    with pytest.raises(UserError, match="not a complete LMDB"):
        open_source(tmp_path / "y")
    with tarfile.open(tmp_path / "x.tgz", "w:gz"):
        pass
    (tmp_path / "text").write_text("hello")
    for name in ("x.tgz", "text"):
        with pytest.raises(
            UserError, match=r"not a tar, zip or LMDB; .*must be decompressed first"
        ):
            open_source(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        open_source(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images"):
        open_source(tmp_path / "empty")
