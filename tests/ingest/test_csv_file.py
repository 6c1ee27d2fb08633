"""Rows of CSV files: all that Python's csv finds are read, or the first that is not is named."""

import csv
import gzip
import io
import random

import polars as pl
import pytest

from pixelrec_jax.ingest import csv_rows, fetch_images, item_info
from pixelrec_jax.ingest.columns import COLUMNS
from pixelrec_jax.ingest.csv_file import CsvFile, open_csv
from pixelrec_jax.ingest.csv_rows import CsvText
from pixelrec_jax.ingest.interactions_file import read_interactions
from pixelrec_jax.ingest.tfds import items, pieces
from pixelrec_jax.system.errors import UserError

ROWS = 4000
NAMES = "item_id,user_id,timestamp,title,url"
STRAY = {100: '12" vinyl', 2900: '12" vinyl'}


def text(titles, *, names=NAMES, end="\n", every="plain"):
    """A CSV whose column `title`, which most readers ignore, has some values of its own."""
    rows = (
        f"i{n},u{n % 400},{1_600_000_000 + n},{titles.get(n, every)},http://host/{n}{end}"
        for n in range(ROWS)
    )
    return f"{names}{end}" + "".join(rows)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "x.csv"


def count_table(path):
    return read_interactions(path)[0].counts["interactions"]


def count_pieces(path):
    size = 50_000
    return sum(len(pieces.read(n, path=path, size=size)) for n in pieces.starts(path, size))


READERS = {
    "prepare": count_table,
    "prepare --item_info": lambda path: item_info.read_item_info(path).collect().height,
    "fetch_images": lambda path: len(fetch_images.read_urls(path)),
    "tfds": count_pieces,
    "tfds --item_info": lambda path: len(items._read_info(str(path))),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "content",
    [
        text(STRAY),
        text({100: '12" vinyl'}),
        text(STRAY, end="\r\n").removesuffix("\r\n"),
        text({}, every='5"'),
        text({n: '"a, ""b"""' for n in STRAY}),
        text({}, every='"quoted"', names='"item_id","user_id","timestamp","title","url"'),
        text({}),
    ],
    ids=["stray", "one", "crlf", "everywhere", "quoted", "all quoted", "none"],
)
def test_every_reader_gets_every_row(path, read, content):
    path.write_text(content, newline="")
    assert read(path) == ROWS


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("titles", "line", "problem"),
    [
        ({5: '"a, b"', **STRAY}, 102, "a quote stands inside of a field"),
        ({100: '"Best" album'}, 102, "',' expected after '\"'"),
        ({100: '"open', 2900: '"open'}, 102, "',' expected after '\"'"),
        ({3990: '"open'}, 3992, "unexpected end of data"),
    ],
)
def test_what_cannot_be_told_apart_is_refused_with_its_line(path, read, titles, line, problem):
    path.write_text(text(titles))
    with pytest.raises(UserError) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    if read is not count_pieces:  # a piece ends earlier, and lines count within it
        assert problem in str(caught.value)
        assert f"line {line}" in str(caught.value)


def test_values_are_those_of_pythons_csv(path):
    titles = {7: '"two\nlines"', 8: '""', 9: "'", **{n: '"a, ""b"""' for n in STRAY}}
    for content in (text(STRAY), text(titles), text({}, every='"q"'), "\ufeff" + text(titles)):
        path.write_text(content, encoding="utf-8")
        expected = list(csv.reader(io.StringIO(content.removeprefix("\ufeff"))))
        file = open_csv(path)
        assert file.rows == ROWS
        assert [list(row) for row in file.scan().fill_null("").collect().iter_rows()] == expected[
            1:
        ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_rows_are_counted_as_python_splits_them(monkeypatch, separator):
    rng, counted = random.Random(0), 0
    monkeypatch.setattr(csv_rows, "_BLOCK", 8)
    for _ in range(3000):
        fields = ['"x"', '""', "x", '"x\ny"', '"""x"', '"x"""', "", 'x"', '"', f'"{separator}"']
        rows = [[rng.choice(fields) for _ in range(2)] for _ in range(rng.randint(1, 4))]
        text = "".join(separator.join(row) + rng.choice(["\n", "\r\n"]) for row in rows)
        try:
            split = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
            expected = sum(any(row) for row in split)
        except csv.Error:
            expected = None
        try:
            rows = CsvText(text.encode(), "x", separator).rows()
            found = sum(row.count for row in rows)
        except UserError:
            found = None
        assert found == expected, text
        counted += expected is not None
    assert counted > 500


@pytest.mark.parametrize("block", [1, 50, 1000])
def test_fields_may_go_on_in_later_blocks(path, monkeypatch, block):
    monkeypatch.setattr(csv_rows, "_BLOCK", block)
    long = '"' + "line\n" * 100 + '"'
    path.write_text(text({n: long for n in (0, 1, 2000, 3999)}))
    assert open_csv(path).rows == ROWS
    path.write_text(text({n: long for n in (0, 1, 2000)} | {3000: '5"'}))
    with pytest.raises(UserError, match=f"line {3002 + 3 * 100}: a quote .* while line 2 has"):
        open_csv(path)


def test_rows_without_any_value_do_not_count(path):
    content = "\n\na,b\n,\n1,2\n\n\n,x\n,\r\n\r\n3,4\r\n,,\n"
    assert open_csv(content.encode(), "x").rows == 3
    assert open_csv((content + '"",\n"5",6\n,","\n').encode(), "x").rows == 5
    assert open_csv(b"", "x").rows == 0


def test_compressed_files_are_counted(path, tmp_path):
    for content in (text(STRAY), text({100: '"a\nb"'})):
        path.write_bytes(gzip.compress(content.encode()))
        assert count_table(path) == ROWS
        lines = pl.DataFrame({"line": content.splitlines()})
        zst = tmp_path / "x.csv.zst"
        options = {"include_header": False, "quote_style": "never", "separator": "\t"}
        lines.lazy().sink_csv(zst, compression="zstd", **options)
        assert zst.read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
        assert count_table(zst) == ROWS


def test_a_row_without_ids_is_not_a_blank_line(path):
    path.write_text(text(STRAY) + ",,,a title,\n\n")
    with pytest.raises(UserError, match="line 4002: item_id, user_id, timestamp are empty"):
        read_interactions(path)


def test_a_field_may_be_long(path):
    path.write_text(text({1: '"' + "a\n" * 200_000 + '"'}))
    assert count_table(path) == ROWS


def test_the_first_row_that_polars_loses_is_named(path):
    path.write_text("\n" + text(STRAY))
    file = CsvFile(CsvText(path, "x.csv"), ROWS, quoted=True)  # as polars reads by default
    read = file.scan().select(COLUMNS).collect(engine="streaming").height
    assert read < ROWS
    with pytest.raises(UserError, match=f"x.csv line 104 cannot .* 4,000 rows .*, {read:,} were"):
        file.check(read, COLUMNS)
