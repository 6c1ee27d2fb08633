"""The same interactions from every format of file give the same dataset, byte for byte."""

import datetime
import gzip

import numpy as np
import polars as pl
import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import fetch_images, item_info
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.ingest.summary import summary
from pixelrec_jax.system.errors import UserError

NAMES = ("item_id", "user_id", "timestamp")
FILES = ("offsets.npy", "items.npy", "timestamps.npy", "item_ids.arrow", "user_ids.arrow")
rng = np.random.default_rng(0)
# Ids with leading zeros, of 200 interactions of 40 users in the order of a file.
ROWS = [
    (f"{rng.integers(30):03}", f"{10**17 + n % 40}", 1_600_000_020 + 86_400 * int(rng.integers(60)))
    for n in range(200)
]


def text(separator=",", *, header=NAMES, quote="", end="\n", time=str):
    """The rows as text; the columns are in the order of `NAMES`."""
    rows = [header] if header else []
    rows += [(item, user, time(seconds)) for item, user, seconds in ROWS]
    return "".join(separator.join(f"{quote}{v}{quote}" for v in row) + end for row in rows).encode()


def moment(seconds):
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def iso(form):
    return lambda seconds: moment(seconds).strftime(form)


def in_zone(seconds):
    zone = datetime.timezone(-datetime.timedelta(hours=3, minutes=30))
    return moment(seconds).astimezone(zone).isoformat()


def frame(**types):
    table = pl.DataFrame(ROWS, schema=NAMES, orient="row")
    return table.with_columns(pl.col(name).cast(dtype) for name, dtype in types.items())


def parquet(table):
    return lambda path: table.write_parquet(path, row_group_size=64)


def arrow(table):
    return lambda path: table.write_ipc(path)


def times(make):
    return frame().with_columns(
        pl.Series("timestamp", [make(moment(seconds)) for *_, seconds in ROWS])
    )


COLUMNS = {"item_id": "article_id", "user_id": "customer_id", "timestamp": "t_dat"}
H_AND_M = tuple(COLUMNS.values())
RECBOLE = ("item_id:token", "user_id:token", "timestamp:float")
POSITIONS = {"timestamp": "3", "item_id": "1", "user_id": "2"}
# name -> what the file holds, and --columns
FORMATS = {
    "csv": (text(), {}),
    "quoted csv": (text(quote='"'), {}),
    "csv with CRLF and a mark of UTF-8": (b"\xef\xbb\xbf" + text(end="\r\n"), {}),
    "tab": (text("\t"), {}),
    "semicolon": (text(";", quote='"'), {}),
    "pipe": (text("|"), {}),
    "gzip": (gzip.compress(text("\t")), {}),
    "RecBole's inter": (text("\t", header=RECBOLE, time=lambda t: f"{t:.1f}"), {}),
    "MovieLens's ::": (text("::", header=None), POSITIONS),
    ":: with a header": (text("::"), {}),
    "without a header": (text("\t", header=None), POSITIONS),
    "other names": (text(header=H_AND_M), COLUMNS),
    "floats": (text(time=lambda t: f"{t}.0"), {}),
    "scientific floats": (text(time=lambda t: f"{t:.9e}"), {}),
    "dates": (text(time=iso("%Y-%m-%d %H:%M:%S")), {}),
    "dates of minutes": (text(time=iso("%Y-%m-%dT%H:%M")), {}),
    "dates in UTC": (text(quote='"', time=iso("%Y-%m-%dT%H:%M:%S.000Z")), {}),
    "dates in a zone": (text(time=in_zone), {}),
    "parquet": (parquet(frame()), {}),
    "parquet of other names": (
        parquet(frame().rename({ours: COLUMNS[ours] for ours in NAMES})),
        COLUMNS,
    ),
    "parquet of integers": (parquet(frame(user_id=pl.Int64, timestamp=pl.Int32)), {}),
    "parquet of floats": (parquet(frame(timestamp=pl.Float64)), {}),
    "parquet of categories": (parquet(frame(item_id=pl.Categorical)), {}),
    "parquet of moments": (parquet(times(lambda t: t.replace(tzinfo=None))), {}),
    "arrow": (arrow(frame()), {}),
    "arrow of moments in a zone": (
        arrow(times(lambda t: t).cast({"timestamp": pl.Datetime("ms", "Asia/Tokyo")})),
        {},
    ),
    "arrow of nanoseconds": (
        arrow(times(lambda t: t).cast({"timestamp": pl.Datetime("ns", "UTC")})),
        {},
    ),
    "arrow of texts": (arrow(frame(timestamp=pl.String)), {}),
}


def write(path, content):
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The files of the dataset that plain Python makes of the rows."""
    order = {user: n for n, user in enumerate(dict.fromkeys(user for _, user, _ in ROWS))}
    items = {item: n for n, item in enumerate(dict.fromkeys(item for item, *_ in ROWS), 1)}
    rows = sorted(ROWS, key=lambda row: (order[row[1]], row[2]))
    return {
        "items": [items[item] for item, *_ in rows],
        "timestamps": [seconds for *_, seconds in rows],
        "item_ids": list(items),
        "user_ids": list(order),
    }


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_dataset(tmp_path, expected, name):
    content, columns = FORMATS[name]
    # The format is told by the content: the name says nothing.
    file = write(tmp_path / "interactions", content)
    manifest = prepare(file, None, tmp_path / "out", columns=columns)
    stored = load_interactions(tmp_path / "out")
    assert stored.items.tolist() == expected["items"]
    assert stored.timestamps.tolist() == expected["timestamps"]
    assert stored.item_ids().to_list() == expected["item_ids"]
    assert stored.user_ids().to_list() == expected["user_ids"]
    assert manifest["timestamp_unit"] == "seconds"
    assert "seconds   since 1970, 2020-09-13 to 2020-11-11" in summary(manifest, "out")
    plain = write(tmp_path / "plain.csv", text())
    prepare(plain, None, tmp_path / "plain")
    for file in FILES:
        assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "out" / file).read_bytes()


def test_days_are_their_first_second(tmp_path):
    rows = "".join(f"i,u,2018-09-{day}\n" for day in (20, 21, 22))
    for content in (
        ("item_id,user_id,timestamp\n" + rows).encode(),
        parquet(
            pl.DataFrame(
                {
                    "item_id": ["i"] * 3,
                    "user_id": ["u"] * 3,
                    "timestamp": [datetime.date(2018, 9, day) for day in (20, 21, 22)],
                }
            )
        ),
    ):
        out = tmp_path / str(callable(content))
        manifest = prepare(write(tmp_path / "x", content), None, out)
        first = int(datetime.datetime(2018, 9, 20, tzinfo=datetime.UTC).timestamp())
        expected = [first + 86_400 * day for day in range(3)]
        assert load_interactions(out).timestamps.tolist() == expected
        assert manifest["source"]["timestamps"] == {
            "form": "dates",
            "first": first,
            "last": first + 2 * 86_400,
        }


@pytest.mark.parametrize(
    ("times", "unit", "expected"),
    [
        (["1600000000.5", "1600000001", "1600000002"], "milliseconds", [500, 1000, 2000]),
        (["1600000000.000001", "1600000000", "1600000001"], "microseconds", [0, 1, 10**6]),
        (["2020-09-13T12:26:40.25Z"] * 3, "milliseconds", [250] * 3),
        (["2020-09-13 12:26:40.000007"] * 3, "microseconds", [7] * 3),
    ],
)
def test_fractions_are_kept_in_a_finer_unit(tmp_path, times, unit, expected):
    rows = "".join(f"i,u,{time}\n" for time in times)
    file = write(tmp_path / "x", ("item_id,user_id,timestamp\n" + rows).encode())
    assert prepare(file, None, tmp_path / "out")["timestamp_unit"] == unit
    stored = load_interactions(tmp_path / "out").timestamps
    per_second = {"milliseconds": 10**3, "microseconds": 10**6}[unit]
    assert (stored - 1_600_000_000 * per_second).tolist() == expected


ID_TYPES = {
    "floats": pl.Series([1.0, 2.0, 3.0]),
    "lists": pl.Series([[1], [2], [3]]),
    "days": pl.Series([datetime.date(2020, 1, 1)] * 3),
    "booleans": pl.Series([True, False, True]),
}


@pytest.mark.parametrize("name", ["item_id", "user_id"])
@pytest.mark.parametrize("kind", ID_TYPES)
def test_ids_of_types_that_cannot_be_ids_are_refused(tmp_path, name, kind):
    table = pl.DataFrame({"item_id": ["a"] * 3, "user_id": ["u"] * 3, "timestamp": [1, 2, 3]})
    file = write(tmp_path / "x", parquet(table.with_columns(ID_TYPES[kind].alias(name))))
    with pytest.raises(UserError, match=rf"{name} is of type .*; write ids as text or integers"):
        prepare(file, None, tmp_path / "out")


def test_item_information_and_urls_are_read_from_every_format(tmp_path):
    table = pl.DataFrame(
        {"article_id": [7, 8], "views": [1.0, 2.0], "url": ["http://a", "http://b"]}
    )
    csv = "article_id|views|url\n7|1.0|http://a\n8|2.0|http://b\n"
    recbole = "article_id:token\tviews:float\turl:token_seq\n7\t1.0\thttp://a\n8\t2.0\thttp://b\n"
    for content in (csv.encode(), recbole.encode(), parquet(table), arrow(table)):
        file = write(tmp_path / "x", content)
        rows = item_info.read_item_info(file, "article_id").collect()
        assert rows.to_dict(as_series=False) == {
            "item_id": ["7", "8"],
            "views": [1, 2],
            "url": ["http://a", "http://b"],
        }
        urls = fetch_images.read_urls(file, {"item_id": "article_id"})
        assert urls.rows() == [("7", "http://a"), ("8", "http://b")]


def test_a_file_of_another_folder_name_has_no_columns_of_it(tmp_path):
    folder = tmp_path / "country=de"
    folder.mkdir()
    table = pl.DataFrame({"item_id": ["1"], "title": ["x"]})
    file = write(folder / "x.parquet", parquet(table))
    assert item_info.read_item_info(file).collect().columns == ["item_id", "title"]
