"""The TFDS builder: what is built is what was given, on one machine, on Beam and in buckets."""

import hashlib
import io
import os
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from PIL import Image

from pixelrec_jax.ingest.tfds import histories, pieces
from pixelrec_jax.ingest.tfds.build import build
from pixelrec_jax.ingest.tfds.pixelrec import Pixelrec
from pixelrec_jax.system.errors import UserError
from tests import subprocesses

# Users and items in no order; two ties of u2 at 7, b before a; quotes, a blank line, no newline at
# the end; u3 has a name that is not ASCII.
CSV = """timestamp,item_id,user_id,device
9,b,u2,x
7,b,u2,x
3,c,u1,x

7,a,u2,x
-5,"d",ü3,"x,y"
1,a,u1,x
8,c,u2,x"""
HISTORIES = {
    "u1": (["a", "c"], [1, 3]),
    "u2": (["b", "a", "c", "b"], [7, 7, 8, 9]),
    "ü3": (["d"], [-5]),
}
INFO = """item_id,title,view_number,coin_number,year
a,"Zwei, ""gute""
Zeilen",5,-3,1999
c,视频,,7,1999
z,not in the interactions,1,1,1999
"""
TOLD = {  # What INFO says of the items of CSV; d and b are not in it.
    "a": {"title": 'Zwei, "gute"\nZeilen', "view_number": 5, "coin_number": -3},
    "c": {"title": "视频", "coin_number": 7},
}
NUMBERS = ["view", "comment", "thumbup", "share", "coin", "favorite", "barrage"]
SKIP = {"image": tfds.decode.SkipDecoding()}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    (folder / "x.csv").write_text(CSV, "utf-8")
    (folder / "info.csv").write_text(INFO, "utf-8")
    (folder / "images").mkdir()
    (folder / "images" / "notes.txt").write_text("no image")
    for number, name in enumerate(("a.jpg", "b.PNG", "b.webp", "c.webp", "d.jpeg", "e.png")):
        picture = Image.new("RGB", (8, 6), (40 * number, 200, 90))
        picture.save(folder / "images" / name)
    return folder


def sources(raw, **changed):
    """Arguments of `build`; a source that is changed to None is not given."""
    given = {"interactions": "x.csv", "images": "images", "item_info": "info.csv"} | changed
    return {name: path and os.path.join(raw, path) for name, path in given.items()}


@pytest.fixture(scope="module")
def built(raw, tmp_path_factory) -> Path:
    """A folder with both configs of the own data, built in this process."""
    out = tmp_path_factory.mktemp("built")
    for config in ("own_items", "own_interactions"):
        build(config, str(out), **sources(raw))
    return out


def read(out, config, split, **options):
    """Examples by key, read as a stranger does: without our builder."""
    name = f"pixelrec/{config}"
    return list(tfds.data_source(name, split=split, data_dir=out, **options))


def test_every_field_of_every_item_comes_back(raw, built):
    examples = read(built, "own_items", "items", decoders=SKIP)
    assert {example["item_id"].decode() for example in examples} == set("abcd")
    files = {"a": "a.jpg", "b": "b.PNG", "c": "c.webp", "d": "d.jpeg"}
    for example in examples:
        item_id = example.pop("item_id").decode()
        assert example.pop("image") == (raw / "images" / files[item_id]).read_bytes()
        expected = dict.fromkeys((f"{name}_number" for name in NUMBERS), -1)
        expected |= dict.fromkeys(("title", "tag", "description"), "") | TOLD.get(item_id, {})
        found = {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in example.items()}
        assert found == expected
    pixels = read(built, "own_items", "items")[0]["image"]
    assert pixels.shape == (6, 8, 3)
    assert pixels.dtype == np.uint8


def check_histories(examples):
    found = {
        example["user_id"].decode(): (
            [item.decode() for item in example["item_ids"]],
            example["timestamps"].tolist(),
        )
        for example in examples
    }
    assert found == HISTORIES


def test_histories_are_in_order_of_time_and_ties_in_order_of_the_file(built):
    check_histories(read(built, "own_interactions", "users"))


def test_splits_can_be_cut_and_examples_looked_up(built):
    whole = read(built, "own_items", "items", decoders=SKIP)
    cut = [read(built, "own_items", f"items{part}", decoders=SKIP) for part in ("[:1]", "[1:]")]
    assert [len(part) for part in cut] == [1, 3]
    assert cut[0] + cut[1] == whole
    source = Pixelrec(config="own_items", data_dir=built).as_data_source("items", decoders=SKIP)
    assert source[2] == whole[2]


def digests(folder: Path):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_beam_keeps_the_order_over_several_shards(raw, built, tmp_path):
    builder = Pixelrec(config="own_items", data_dir=tmp_path, distributed=True, **sources(raw))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3, beam_runner="DirectRunner")
    )
    assert len(list(Path(builder.data_dir).glob("*array_record*"))) > 1
    whole = read(built, "own_items", "items", decoders=SKIP)
    assert read(tmp_path, "own_items", "items", decoders=SKIP) == whole


def test_another_order_of_the_lines_builds_the_same_bytes(raw, built, tmp_path):
    header, *lines = INFO.replace("\nZeilen", " Zeilen").splitlines(keepends=True)
    plain, reversed_ = tmp_path / "plain.csv", tmp_path / "reversed.csv"
    plain.write_text(header + "".join(lines))
    reversed_.write_text(header + "".join(reversed(lines)))
    for info in (plain, reversed_):
        build("own_items", str(tmp_path / info.stem), **sources(raw, item_info=str(info)))
    assert digests(tmp_path / "plain") == digests(tmp_path / "reversed")


@pytest.mark.parametrize("size", [*range(1, len(CSV) + 2), 10_000])
def test_pieces_of_any_size_give_the_same_histories(raw, size):
    path = str(raw / "x.csv")
    found = {}
    for start in reversed(list(pieces.starts(path, size))):  # Beam brings them in any order.
        for user_id, fragment in histories.fragments(start, path=path, size=size):
            found.setdefault(user_id, []).append(fragment)
    merged = dict(histories.merge(user_id, fragments) for user_id, fragments in found.items())
    assert {
        user_id: (example["item_ids"], example["timestamps"].tolist())
        for user_id, example in merged.items()
    } == HISTORIES


def test_many_ties_stay_in_order_of_the_file(tmp_path):
    path = str(tmp_path / "ties.csv")
    names = [f"i{number}" for number in range(500)]
    lines = [f"{name},u,{number % 2}\n" for number, name in enumerate(names)]
    Path(path).write_text("item_id,user_id,timestamp\n" + "".join(lines))
    fragments = [
        fragment
        for start in pieces.starts(path, 900)
        for _, fragment in histories.fragments(start, path=path, size=900)
    ]
    for _, example in (*histories.examples(path), histories.merge("u", fragments)):
        assert example["item_ids"] == names[::2] + names[1::2]


def test_without_interactions_items_are_those_described_and_else_those_with_an_image(raw, tmp_path):
    given = sources(raw, interactions=None)
    builder = build("own_items", str(tmp_path / "described"), missing="drop", **given)
    assert builder.info.splits["items"].num_examples == 2  # z has no image
    builder = build("own_items", str(tmp_path / "drawn"), **given | {"item_info": None})
    assert builder.info.splits["items"].num_examples == 5


def test_sources_may_lie_in_the_manual_directory(raw, tmp_path):
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "interactions.csv").symlink_to(raw / "x.csv")
    (manual / "images").symlink_to(raw / "images")
    builder = tfds.builder("pixelrec/pixel200k_items", data_dir=tmp_path / "out")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    assert builder.info.splits["items"].num_examples == 4


class Bucket(MemoryFileSystem):
    """gs:// in memory."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012 (as MemoryFileSystem has it)
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("gs://"))


@pytest.fixture
def bucket(monkeypatch):
    """A bucket in memory for the time of a test."""
    forget = backend._FileSystemSpecBackend._get_filesystem.cache_clear
    monkeypatch.setitem(_registry, "gcs", Bucket)
    forget()
    yield fsspec.filesystem("gcs")
    forget()


@pytest.mark.parametrize("config", ["own_items", "own_interactions"])
def test_beam_writes_the_same_bytes_as_one_process_also_to_a_bucket(
    raw, built, bucket, tmp_path, config
):
    bucket.put(str(raw), "gs://bucket/raw", recursive=True)
    build(config, "gs://bucket/out", beam_runner="DirectRunner", **sources("gs://bucket/raw"))
    bucket.get(f"gs://bucket/out/pixelrec/{config}", str(tmp_path / config), recursive=True)
    expected = digests(built / "pixelrec" / config)
    assert len(expected) == 3  # info, features, one shard
    assert digests(tmp_path / config) == expected


def picture(**options):
    file = io.BytesIO()
    Image.new("RGB", (8, 6)).save(file, "JPEG", **options)
    return file.getvalue()


REFUSED = {  # name -> config, changed sources, files to write first, match
    "no folder": ("own_items", {"images": "nowhere"}, {}, "no image folder '.*nowhere'"),
    "no file": ("own_interactions", {"interactions": "no.csv"}, {}, "no file '.*no.csv'"),
    "not given": ("own_interactions", {"interactions": None}, {}, "needs interactions; give --"),
    "no images": ("own_items", {"images": "f"}, {"f/a.txt": b"-"}, "f' holds no images"),
    "config": ("own_itms", {}, {}, "own_itms is unknown; did you mean 'own_items'"),
    "twice": ("own_items", {"item_info": "i.csv"}, {"i.csv": b"item_id\na\na\n"}, "'a' twice"),
    "number": (
        "own_items",
        {"item_info": "i.csv"},
        {"i.csv": b"item_id,view_number\na,many\n"},
        "view_number of item 'a' is 'many', expected an integer",
    ),
    "no ids": ("own_items", {"item_info": "i.csv"}, {"i.csv": b"id\na\n"}, "no column item_id"),
    "truncated": (
        "own_items",
        {"images": "f", "interactions": None, "item_info": None},
        {"f/a.jpg": picture()[:-300]},
        "item 'a' has no usable image .* cannot be decoded .*--missing=drop",
    ),
    "absent": ("own_items", {"images": "f"}, {"f/a.jpg": picture()}, "item 'b' .*: missing"),
    "time": (
        "own_items",
        {"interactions": "t.csv"},
        {"t.csv": b"item_id,user_id,timestamp\na,u,1\na,u,noon\n"},
        "got 'a,u,noon'",
    ),
    "user": (
        "own_interactions",
        {"interactions": "t.csv"},
        {"t.csv": b"item_id,user_id,timestamp\na,u,1\na,,2\n"},
        "line 3: user_id is empty",
    ),
    "columns": (
        "own_interactions",
        {"interactions": "t.csv"},
        {"t.csv": b"a,b\n1,2\n"},
        "has a, b",
    ),
    "empty": ("own_interactions", {"interactions": "t.csv"}, {"t.csv": b""}, "is empty"),
    "header": (
        "own_interactions",
        {"interactions": "t.csv"},
        {"t.csv": b"item_id,user_id,timestamp\n"},
        "no interactions",
    ),
}


def refused(raw, folder, name, **options):
    """Asserts one line that matches, and that no dataset is left."""
    config, changed, files, match = REFUSED[name]
    for path, content in files.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(content)
    given = sources(raw, **{k: path and str(folder / path) for k, path in changed.items()})
    with pytest.raises(UserError, match=match) as caught:
        build(config, str(folder / "out"), **given, **options)
    assert "\n" not in str(caught.value)
    assert not list(folder.glob("out/pixelrec/own*/*"))


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_input_is_refused_in_one_line(raw, tmp_path, name):
    refused(raw, tmp_path, name)


@pytest.mark.parametrize("name", ["truncated", "time"])
def test_a_worker_of_beam_refuses_in_the_same_line(raw, tmp_path, name):
    refused(raw, tmp_path, name, beam_runner="DirectRunner")


def test_a_place_that_cannot_hold_it_is_refused(raw, tmp_path):
    with pytest.raises(UserError, match=r"cannot build in --out=.*x.csv"):
        build("own_items", str(raw / "x.csv"), **sources(raw))


def test_a_dataset_is_not_overwritten(raw, built):
    before = digests(built)
    with pytest.raises(UserError, match="exists; remove it"):
        build("own_items", str(built), **sources(raw))
    assert digests(built) == before


def test_the_program_needs_neither_jax_nor_tensorflow_and_writes_the_same_bytes(raw, tmp_path):
    arguments = [f"--out={tmp_path}", f"--images={raw / 'images'}", "--config=pixel1m_items"]
    code = (
        "import runpy, sys\n"
        "import pixelrec_jax.ingest.sources.tfds\n"
        "try:\n"
        "    runpy.run_module('pixelrec_jax.programs.tfds', run_name='__main__')\n"
        "finally:\n"
        "    print([name for name in ('jax', 'flax', 'tensorflow') if name in sys.modules])\n"
    )
    program = [sys.executable, "-c", code, *arguments]
    done = subprocesses.run(program, check=True)
    assert "1.0.0: 5 items\n" in done.stdout
    assert "has 100,541: these are other files" in done.stdout
    assert done.stdout.endswith("\n[]\n")
    # Another process orders the features of an example differently, unless that is prevented.
    build("own_items", str(tmp_path), images=str(raw / "images"))
    shards = [path.read_bytes() for path in tmp_path.glob("pixelrec/*/1.0.0/*array_record*")]
    assert len(shards) == 2
    assert shards[0] == shards[1]
