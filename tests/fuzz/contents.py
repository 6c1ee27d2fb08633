"""Files made of the parts that their formats have, in any order."""

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

_TEXT = st.one_of(
    st.sampled_from(["", "i1", "u1", "12", "-1", "1.5", '"', '"a', 'a"b', '""', "\x1b[31m", "\0"]),
    st.text(max_size=8),
    st.integers().map(str),
)
_HEADER = st.permutations(["item_id", "user_id", "timestamp"])
_NAMES = st.one_of(
    st.sampled_from(["a.png", "../a.png", "/b.png", "a\\c.png", ".png", "a.png/", "d/./e.JPG", ""]),
    st.text(max_size=12).map(lambda text: f"{text}.png"),
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Text with lines and separators, quoted well or badly, in several encodings."""
    separator = draw(st.sampled_from([",", "\t", ";", "|", "::", ",,"]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r", "\n\n"]))
    header = draw(st.one_of(_HEADER, st.lists(_TEXT, max_size=4)))
    rows = draw(st.lists(st.lists(_TEXT, max_size=5), max_size=12))
    if draw(st.booleans()) and len(separator) == 1:
        buffer = io.StringIO()
        writer = csv.writer(buffer, delimiter=separator, lineterminator=end)
        writer.writerows([header, *rows])
        text = buffer.getvalue()
    else:
        text = end.join(separator.join(row) for row in [header, *rows])
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, "surrogatepass" if encoding == "utf-8" else "replace")


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    """Zips with any names, flags, versions and sizes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in draw(st.lists(_NAMES, max_size=6)):
            info = zipfile.ZipInfo(name or "x")
            info.compress_type = draw(st.sampled_from([0, 8, 12, 14]))
            info.external_attr = draw(st.sampled_from([0, 0o120777 << 16, 0o040755 << 16]))
            archive.writestr(info, draw(st.binary(max_size=40)))
            number = st.one_of(st.integers(0, 99), st.sampled_from([2**16 - 1, 2**31, 2**32 - 1]))
            for field in draw(st.lists(st.sampled_from(["CRC", "file_size", "header_offset"]))):
                setattr(info, field, draw(number))
            info.flag_bits = draw(st.integers(0, 2**16 - 1))
    return buffer.getvalue()


@st.composite
def tars(draw: st.DrawFn) -> bytes:
    """Tars with entries of any type, name and size."""
    kinds = [
        *(tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE),
        *(tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_LONGNAME),
        *(tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE),
    ]
    records = ["path=a.png", "size=-1", "size=99999999999", "GNU.sparse.major=1", "mtime=nan", "=="]
    parts = []
    for name in draw(st.lists(_NAMES, max_size=6)):
        member = tarfile.TarInfo(name)
        member.type = draw(st.sampled_from(kinds))
        member.linkname = draw(_NAMES)
        content = draw(st.one_of(st.binary(max_size=600), st.sampled_from(records).map(_record)))
        member.size = draw(st.one_of(st.just(len(content)), st.integers(0, 2**33)))
        form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT]))
        try:
            header = member.tobuf(form, "utf-8", "surrogateescape")
        except ValueError:  # it has no place for such a name
            continue
        parts += [header, content, bytes(-len(content) % 512)]
    return b"".join([*parts, bytes(1024)])


def _record(text: str) -> bytes:
    length = len(text) + 2
    length += len(str(length + len(str(length))))
    return f"{length} {text}\n".encode()


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXT, inner, max_size=3)),
    max_leaves=6,
)


def json_of(seeds: Callable[[], Sequence[bytes]]) -> st.SearchStrategy[bytes]:
    """Returns a strategy of JSON files of which some values are others, or are gone."""

    @st.composite
    def changed(draw: st.DrawFn) -> bytes:
        content = json.loads(draw(st.sampled_from(list(seeds()))))
        for _ in range(draw(st.integers(0, 3))):
            content = _replaced(draw, content)
        return json.dumps(content).encode("utf-8", "surrogatepass")

    return changed()


def _replaced(draw: st.DrawFn, content: Any) -> Any:
    if not isinstance(content, dict) or not content or draw(st.integers(0, 3)) == 0:
        return draw(_VALUES)
    key = draw(st.sampled_from(sorted(content)))
    if draw(st.integers(0, 4)) == 0:
        return {name: value for name, value in content.items() if name != key}
    return {**content, key: _replaced(draw, content[key])}
