"""Damaged files of datasets and runs, and any words of a config, are one line at most."""

import io
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelrec_jax.configs.pixelrec import get_config
from pixelrec_jax.data import item_info
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.runs import examples, run_folder
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import digest
from tests.fuzz import seeds
from tests.fuzz.bounds import SECONDS, SLACK, check_line, run, tried
from tests.fuzz.mutations import mutated
from tests.tiny import tiny_config

DATASET = ("manifest.json", "offsets.npy", "items.npy", "image_rows.npy")
DATASET += ("item_ids.arrow", "item_info.arrow", "images/00000.array_record")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A prepared dataset with images and item information."""
    folder = tmp_path_factory.mktemp("dataset")
    (folder / "images").mkdir()
    for number in range(7):
        (folder / "images" / f"i{number}.png").write_bytes(seeds.images()[0])
    (folder / "x.csv").write_bytes(seeds.interactions()[0])
    (folder / "info.csv").write_bytes(seeds.item_info()[0])
    prepare(folder / "x.csv", folder / "images", folder / "out", item_info=folder / "info.csv")
    return folder / "out"


def _check_mutations(read, whole: bytes, tmp_path: Path) -> None:
    """Reads a whole file, and damaged copies of it; `read` takes a folder and the file in it."""
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "x").write_bytes(whole)
    read(tmp_path / "valid", tmp_path / "valid" / "x")

    @tried(25)
    @given(content=mutated([whole]))
    def check(content):
        run(read, tmp_path / "example", content, most=SLACK + 100 * len(content))

    check()


@pytest.mark.parametrize("name", DATASET)
def test_a_damaged_file_of_a_dataset_is_read_or_refused(name, dataset, tmp_path, bounded):
    """The list of the dataset agrees with the damaged file, so that the file itself is read."""
    whole = (dataset / name).read_bytes()

    def read(folder: Path, path: Path) -> None:
        copy = shutil.copytree(dataset, folder / "copy")
        path.rename(copy / name)
        if name != "manifest.json":
            manifest = json.loads((copy / "manifest.json").read_text())
            size = (copy / name).stat().st_size
            manifest["files"][name] = {"sha256": digest(copy / name), "bytes": size}
            (copy / "manifest.json").write_text(json.dumps(manifest))
        found = load_interactions(copy)
        found.item_ids(), found.user_ids(), item_info.load(found)
        ImageStore(copy, size=8).load(np.arange(1, found.num_items))

    _check_mutations(read, whole, tmp_path)


@pytest.mark.parametrize("file", ["test_top_k.parquet", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_read_or_refused(file, dataset, tmp_path, bounded):
    top = pl.DataFrame(
        {"user_id": ["u0", "u0"], "rank": [1, 2], "item_id": ["i1", "i2"], "score": [2.0, 1.0]}
    ).with_columns(pl.col("rank").cast(pl.Int32), pl.col("score").cast(pl.Float32))
    buffer = io.BytesIO()
    top.write_parquet(buffer)
    lines = b"".join(b'{"step": %d, "train/loss": 0.5}\n' % step for step in range(1, 9))
    config = run_folder.storable(tiny_config("user=mf,item=id,dataset=toy", dataset))

    def read(folder: Path, path: Path) -> None:
        path.rename(folder / file)
        run_folder.CONFIG.write(folder / run_folder.CONFIG.name, config)
        if file == "metrics.jsonl":
            run_folder.MetricsLog(folder, continue_from=4).__exit__(None, None, None)
        else:
            examples.show(folder, users=2, seed=0)

    whole = lines if file == "metrics.jsonl" else buffer.getvalue()
    _check_mutations(read, whole, tmp_path)


def test_words_of_a_config_make_a_config_or_one_line(bounded):
    words = st.one_of(
        st.sampled_from(
            ["user", "item", "dataset", "split", "preset", "=", ",", ",,", "==", "[x]"]
        ),
        st.sampled_from(["sasrec", "id", "toy", "clip_vit_b32", "mf", "custom", "global_time"]),
        st.text(max_size=6),
    )

    @tried(150)
    @given(text=st.lists(words, max_size=9).map("".join))
    def check(text):
        signal.alarm(SECONDS)
        try:
            get_config(text)
        except UserError as error:
            check_line(error)
        finally:
            signal.alarm(0)

    check()
