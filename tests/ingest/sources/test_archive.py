"""Tar and zip: none leads out of itself, costs more than its bounds, or is taken for whole."""

import io
import tarfile
import zipfile

import pytest

from pixelrec_jax.ingest.image_shards import write_shards
from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.system.errors import UserError
from tests.ingest.pictures import picture, tar_of


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
