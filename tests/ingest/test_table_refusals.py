"""Tables that cannot be read are told by what they are, in one line, with row and column."""

import bz2
import io
import lzma
import zipfile

import polars as pl
import pytest

from pixelrec_jax.ingest import column_names, csv_rows
from pixelrec_jax.ingest.columns import COLUMNS
from pixelrec_jax.ingest.csv_file import open_csv
from pixelrec_jax.ingest.fetch_images import read_urls
from pixelrec_jax.ingest.interactions_file import read_interactions
from pixelrec_jax.ingest.item_info import read_item_info
from pixelrec_jax.ingest.tfds import pieces
from pixelrec_jax.system.errors import UserError

HEADER = "item_id,user_id,timestamp,url\n"
TEXT = HEADER + "".join(f"i{n},u{n % 3},{n},http://h/{n}\n" for n in range(50))


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.csv", TEXT)
    return file.getvalue()


def columnar(write):
    file = io.BytesIO()
    write(pl.read_csv(io.StringIO(TEXT)), file)
    return file.getvalue()


FOREIGN = {
    "xz": (lzma.compress(TEXT.encode()), "is compressed with xz; decompress it"),
    "bzip2": (bz2.compress(TEXT.encode()), "is compressed with bzip2; decompress it"),
    "zip": (zipped(), "is a zip or an Excel workbook; unpack it"),
    "UTF-16": (TEXT.encode("utf-16"), "is UTF-16; convert it"),
    "UTF-16, big endian": (b"\xfe\xff" + TEXT.encode("utf-16-be"), "is UTF-16; convert it"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "is UTF-16 without its mark"),
    "CR alone": (TEXT.replace("\n", "\r").encode(), "lines that end with CR alone"),
    "zeros": (b"\0" * 5000, "is not text"),
    "pickle": (b"\x80\x04\x95" + TEXT.encode(), "is a Python pickle"),
    "Arrow stream": (columnar(pl.DataFrame.write_ipc_stream), "is a stream of Arrow"),
}
READERS = {
    "interactions": read_interactions,
    "item information": read_item_info,
    "URLs": read_urls,
    "CSV only": lambda path: open_csv(path),
}


def refused(read, path, match):
    with pytest.raises(UserError, match=match) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("kind", FOREIGN)
def test_formats_that_are_not_read_are_named(tmp_path, read, kind):
    content, match = FOREIGN[kind]
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    refused(read, path, match)


@pytest.mark.parametrize("write", [pl.DataFrame.write_parquet, pl.DataFrame.write_ipc])
def test_columnar_files_are_whole_or_refused(tmp_path, write):
    content, path = columnar(write), tmp_path / "x.csv"
    for end in (8, len(content) // 2, len(content) - 4):
        path.write_bytes(content[:end])
        for read in (read_interactions, read_item_info, read_urls):
            refused(read, path, "is a (Parquet|Arrow) file that is cut off; copy it again")
    damaged = content[: len(content) // 2] + b"\xff" * (len(content) // 2) + content[-6:]
    path.write_bytes(damaged)
    refused(read_interactions, path, "is not a valid (Parquet|Arrow): ")
    path.write_bytes(content)
    refused(open_csv, path, "is a Parquet or Arrow file; give a CSV file")


@pytest.mark.parametrize("character", ["\0", "\x1b", "\t", "\n", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize("name", ["item_id", "user_id"])
def test_ids_with_control_characters_are_refused_by_line(tmp_path, name, character):
    rows = [{"item_id": f"i{n}", "user_id": "u", "timestamp": n} for n in range(5)]
    rows[3][name] = f"a{character}b"
    table, path = pl.DataFrame(rows), tmp_path / "x"
    where = f"{name} .* has the control character U\\+{ord(character):04X}; take it out"
    table.write_csv(path)
    refused(read_interactions, path, f"x' line 5: {where}")
    table.write_parquet(path)
    refused(read_interactions, path, f"x' row 4: {where}")


def test_pieces_refuse_control_characters_as_the_whole_file_does(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("item_id,user_id,timestamp\na\x1bb,u,1\n")
    refused(lambda file: pieces.read(0, path=str(file)), path, "expected item_id,.*got 'a")


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("name", ["item_id", "user_id"])
def test_rows_without_an_id_are_refused_by_row(tmp_path, name, value):
    table = pl.DataFrame({"item_id": ["a"] * 3, "user_id": ["u"] * 3, "timestamp": [1, 2, 3]})
    columns = {other: ["x", value, "x"] if other == name else table[other] for other in COLUMNS}
    pl.DataFrame(columns).write_parquet(tmp_path / "x")
    refused(read_interactions, tmp_path / "x", f"row 2: {name} is empty")


def test_a_row_without_any_value_is_not_a_blank_line_of_parquet(tmp_path):
    table = pl.DataFrame({"item_id": ["a", None], "user_id": ["u", None], "timestamp": [1, None]})
    table.write_parquet(tmp_path / "x")
    refused(read_interactions, tmp_path / "x", "row 2: item_id is empty")


@pytest.mark.parametrize(
    ("times", "match"),
    [
        (["2018-09-20", "2018-02-30"], "line 3: timestamp '2018-02-30' is not a date"),
        (["2018-09-20", "1537401600"], "line 3: timestamp '1537401600' is not a date"),
        (["2018-09-20", "2018-09-20T24:00:00"], "line 3: .* is not a date"),
        (["2018-09-20", "2018-09-20T10:00:00.0000001"], "line 3: .* is not a date"),
        (["2018-09-20", ""], "line 3: timestamp '' is not a date such as"),
        (["1.5", "nan"], "line 3: timestamp 'nan' is not a finite number"),
        (["1.5", "inf"], "line 3: timestamp 'inf' is not a finite number"),
        (["1.5", "1e300"], "line 3: timestamp '1e300' is not a finite number up to 2.53"),
        (["1.5", "2.5"], "have fractions of a unit that was not recognised, such as 1.5"),
        (["20.09.2018", "21.09.2018"], "line 2: timestamp '20.09.2018' is not an integer"),
        (["1", "2018-09-20"], "line 3: timestamp '2018-09-20' is not an integer"),
    ],
)
def test_timestamps_that_cannot_be_read_stop_with_their_line(tmp_path, times, match):
    rows = "".join(f"i,u,{time}\n" for time in times)
    (tmp_path / "x").write_text("item_id,user_id,timestamp\n" + rows)
    refused(read_interactions, tmp_path / "x", match)


def test_a_unit_that_is_not_that_of_dates_is_refused(tmp_path):
    path = tmp_path / "x"
    path.write_text("item_id,user_id,timestamp\ni,u,2018-09-20\n")
    for unit in ("days", "milliseconds"):
        with pytest.raises(UserError, match=f"--timestamp_unit={unit}, but .*kept in seconds"):
            read_interactions(path, unit=unit)
    assert read_interactions(path, unit="order")[1].unit == "order"
    assert read_interactions(path, unit="seconds")[1].unit == "seconds"


def test_times_of_other_types_are_refused(tmp_path):
    table = pl.DataFrame({"item_id": ["a"], "user_id": ["u"], "timestamp": [True]})
    table.write_parquet(tmp_path / "x")
    refused(read_interactions, tmp_path / "x", "timestamp is of type Boolean; give integers")


def test_columns_that_are_not_there_are_told_with_those_that_are(tmp_path):
    path = tmp_path / "x"
    path.write_text("article_id;customer_id;t_dat\n1;2;3\n")
    listed = "it has article_id, customer_id, t_dat"
    missing = f"has no column item_id, user_id, timestamp; {listed}; give the names with --columns"
    refused(read_interactions, path, missing)
    given = {"item_id": "article_id", "user_id": "customer", "timestamp": "t_dat"}
    with pytest.raises(UserError, match=rf"no column customer; {listed}; did you .*=customer_id"):
        read_interactions(path, given)
    with pytest.raises(UserError, match=r"one column of .* twice"):
        read_interactions(path, given | {"user_id": "article_id"})
    with pytest.raises(UserError, match="give positions, of a file without a header, or names"):
        read_interactions(path, given | {"user_id": "2"})
    path.write_text(",".join(f"c{n}" for n in range(5000)) + "\n")
    refused(read_interactions, path, "c18, c19 and 4,980 more")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["item=x"], "'item' is not one of ours; did you mean 'item_id'"),
        (["item_id"], "--columns needs item_id=NAME once"),
        (["item_id=a", "item_id=b"], "--columns needs item_id=NAME once"),
    ],
)
def test_wrong_words_of_columns_are_refused(words, match):
    with pytest.raises(UserError, match=match):
        column_names.parse(words, COLUMNS)
    assert column_names.parse(["item_id=a=b"], COLUMNS) == {"item_id": "a=b"}


def test_a_colon_beside_the_separator_of_two_is_refused_by_line(tmp_path):
    path = tmp_path / "x"
    path.write_text("u::i::1\nu::a:b::2\n")
    with pytest.raises(UserError, match="line 2: a ':' stands beside the separator '::'"):
        read_interactions(path, {"user_id": "1", "item_id": "2", "timestamp": "3"})


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_rows, "_BLOCK", 10)
    monkeypatch.setattr(csv_rows, "_LONGEST", 1000)
    path = tmp_path / "x"
    path.write_text(HEADER + "a" * 5000)
    refused(read_interactions, path, "has a line of more than 1,000 bytes")
