"""What is built is what was given, on one machine, on Beam and in buckets."""

import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils.epath import backend
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from pixelrec_jax.ingest.tfds.build import build
from pixelrec_jax.ingest.tfds.pixelrec import Pixelrec
from tests import subprocesses
from tests.ingest.tfds.given import INFO, NUMBERS, SKIP, TOLD, digests, read, sources


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


def test_splits_can_be_cut_and_examples_looked_up(built):
    whole = read(built, "own_items", "items", decoders=SKIP)
    cut = [read(built, "own_items", f"items{part}", decoders=SKIP) for part in ("[:1]", "[1:]")]
    assert [len(part) for part in cut] == [1, 3]
    assert cut[0] + cut[1] == whole
    source = Pixelrec(config="own_items", data_dir=built).as_data_source("items", decoders=SKIP)
    assert source[2] == whole[2]


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
