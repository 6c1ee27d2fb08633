"""Archives that are damaged, or made to cost much, end in one line; hard links are files."""

import io
import struct
import tarfile
import zipfile

import pytest

from pixelrec_jax.ingest.sources import archive, open_source
from pixelrec_jax.system.errors import UserError
from tests.ingest.pictures import picture

CONTENT = picture(0)[0]


def entry(name, content=CONTENT, **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, io.BytesIO(content)


def tar(path, *entries, **options):
    with tarfile.open(path, "w", **options) as opened:
        for each in entries:
            opened.addfile(*each)
    return path


def refused(path, why):
    with pytest.raises(UserError, match=why) as error:
        open_source(path)
    assert str(path) in str(error.value)
    assert str(error.value).isprintable()


def test_hard_links_are_files(tmp_path):
    def link(name, target, kind=tarfile.LNKTYPE):
        return entry(name, b"", type=kind, linkname=target)

    path = tar(
        tmp_path / "x.tar",
        entry("./blobs/1"),
        link("./covers/a.png", "./blobs/1"),
        link("covers/b.png", "covers/a.png"),  # the ./ may be missing
        link("covers/none.png", "covers/later.png"),
        link("covers/outside.png", "/etc/passwd"),
        link("covers/symbolic.png", "../blobs/1", tarfile.SYMTYPE),
        entry("covers/later.png"),
    )
    images = open_source(path)
    assert set(images.ids) == {"a", "b", "later"}
    assert images.read("a") == images.read("b") == CONTENT


ZIPS = {
    "a name that is not UTF-8": (8, b"\x00\x08", 46, b"\xff"),
    "an unknown version": (6, b"\xff\x00", 0, b""),
    "an unknown flag": (8, b"\x20\x00", 0, b""),
}


@pytest.mark.parametrize("damage", ZIPS)
def test_zips_with_unusual_headers(tmp_path, damage):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a.png", CONTENT)
        opened.writestr("b.png", CONTENT)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    for start in (directory, 0):  # in the list and, two bytes earlier, before the content
        for shift, value in (ZIPS[damage][:2], ZIPS[damage][2:]):
            place = start + shift - (2 if start == 0 and shift < 46 else 0)
            if value and not (start == 0 and shift == 46):
                content[place : place + len(value)] = value
    path.write_bytes(content)
    if damage == "an unknown flag":
        images = open_source(path)
        with pytest.raises(ValueError, match="cannot be read"):
            images.read("a")
        assert images.read("b") == CONTENT
    else:
        refused(path, "is not a complete zip")


def test_a_name_of_no_letters_in_a_zip_is_left_out(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("a.png", CONTENT)
        opened.writestr("b.png", CONTENT)
    content = path.read_bytes()
    first = content.index(b"PK\x01\x02")
    header = bytearray(content[first : first + 46])
    header[28:30] = bytes(2)  # the length of the name
    size = struct.unpack_from("<I", content, len(content) - 10)[0] - 5
    end = content[-22:-10] + struct.pack("<I", size) + content[-6:]
    path.write_bytes(content[:first] + header + content[first + 51 : -22] + end)
    assert set(open_source(path).ids) == {"b"}


def test_tars_whose_headers_lie(tmp_path):
    def changed(name, at, value, **fields):
        path = tar(tmp_path / name, entry("a.png"), entry("b.png", **fields), entry("c.png"))
        content = bytearray(path.read_bytes())
        with tarfile.open(path) as opened:
            start = opened.getmembers()[1].offset
        content[start + at : start + at + len(value)] = value
        content[start + 148 : start + 156] = b" " * 8
        total = sum(content[start : start + 512])
        content[start + 148 : start + 156] = b"%06o\0 " % total
        path.write_bytes(content)
        return path

    size = 124
    backwards = b"\xff" * 11 + b"\x00"  # -256 in base 256
    refused(changed("backwards", size, backwards), "is not a complete tar")
    refused(changed("sparse", 386, b"x" * 12, type=tarfile.GNUTYPE_SPARSE), "not a complete tar")
    refused(changed("beyond", size, b"77777777777"), "is not a complete tar")
    long_name = changed("long", size, b"00077777777", type=tarfile.GNUTYPE_LONGNAME)
    refused(long_name, r"a header has 16,777,\d+ bytes")


def test_headers_of_a_tar_are_bounded(tmp_path):
    keys = {f"comment.{n}": "x" for n in range(archive._MOST_GLOBAL_HEADERS + 1)}
    path = tar(tmp_path / "x", entry("a.png"), format=tarfile.PAX_FORMAT, pax_headers=keys)
    refused(path, "global headers")
    fields = {"pax_headers": {"comment": "x" * archive._LARGEST_HEADER}}
    path = tar(tmp_path / "y", entry("z.png"), entry("a.png", **fields))
    refused(path, "a header has")
    deep = b"".join(
        entry("././@LongLink", b"a", type=tarfile.GNUTYPE_LONGNAME)[0].tobuf() + b"a".ljust(512)
        for _ in range(3000)
    )
    (tmp_path / "z").write_bytes(tar(tmp_path / "w", entry("a.png")).read_bytes()[:1024] + deep)
    refused(tmp_path / "z", "is not a complete tar")


def test_a_failure_of_the_disk_is_not_called_damage(tmp_path, monkeypatch):
    path = tar(tmp_path / "x", entry("a.png"))

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(archive, "_members", fail)
    refused(path, "cannot read --images=.*: Input/output error")
