"""Every kind of image source gives the same pictures, or one line."""

import io
import os
import tarfile
import zipfile

import pytest

from pixelrec_jax.ingest.sources import open_source, source
from pixelrec_jax.system.errors import UserError
from tests.ingest.pictures import picture, write_lmdb


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
