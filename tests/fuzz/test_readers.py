"""Whatever a file holds, its reader gives a result or one line, soon, and within a stated memory.

Each reader gets valid files that were changed, files made of parts that mean something to it, and
any bytes. The examples are the same in every run. PIXELREC_FUZZ=5000 tries so many other ones.
"""

import io
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from pixelrec_jax.configs.pixelrec import get_config
from pixelrec_jax.data import features, item_info
from pixelrec_jax.data.images import ImageStore, decode
from pixelrec_jax.data.interactions import load
from pixelrec_jax.data.split import LEAVE_ONE_OUT
from pixelrec_jax.ingest import fetch_images
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.ingest.sources import open_source, source
from pixelrec_jax.runs import examples, report, run_folder
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import digest
from pixelrec_jax.weights.files import read_tensors
from tests.fuzz import contents, seeds
from tests.fuzz.measure import at_most
from tests.fuzz.mutations import mutated
from tests.tiny import interactions_of

MORE = int(os.environ.get("PIXELREC_FUZZ", "0"))
SECONDS = 20  # for one file of some kilobytes
PIXELS = 2**20  # of an image; in the place of Pillow's limit, so that the memory can be seen
LARGEST = 2**22  # bytes of a file in an archive, in the place of the limit of `source`
SLACK = 96 * 2**20  # what libraries take for any file: threads of polars, caches


@dataclass(frozen=True)
class Reader:
    """How a reader is called, and what it may cost.

    Attributes:
      read: given the folder of one example and the file in it.
      files: strategy of the contents of the file.
      examples: how many are tried.
      times: bytes of memory for each byte of the file, beside `fixed`.
    """

    read: Callable[[Path, Path], object]
    files: Callable[[], st.SearchStrategy[bytes]]
    examples: int = 100
    times: int = 100
    fixed: int = SLACK


def check_line(error: Exception, folder: Path | None = None) -> None:
    """Asserts that a message is one short line, which names the file or the option to change."""
    assert str(error).isprintable()
    assert len(str(error)) <= 3000
    assert folder is None or str(folder) in str(error) or "--" in str(error)


def prepared(folder: Path, path: Path) -> None:
    prepare(path, None, folder / "out")


def described(folder: Path, path: Path) -> None:
    (folder / "x.csv").write_text(
        "item_id,user_id,timestamp\n" + "".join(f"i{k},u,{k}\n" for k in range(4))
    )
    prepare(folder / "x.csv", None, folder / "out", item_info=path)


def decoded(folder: Path, path: Path) -> None:
    decode(path.read_bytes(), 8)


def looked_up(folder: Path, path: Path) -> None:
    images = open_source(path)
    try:
        for item_id in list(images.ids)[:200]:
            images.fingerprint(item_id)
            try:
                images.read(item_id)
            except ValueError as error:
                check_line(error)
    finally:
        images.close()


def matrix(folder: Path, path: Path) -> None:
    features.FeatureStore(path, interactions_of([np.arange(1, 5)], 5)).load(np.arange(5))


def indexed(folder: Path, path: Path) -> None:
    (folder / "a.safetensors").write_bytes(seeds.weights()[0])
    read_tensors(path.rename(folder / "model.safetensors.index.json"))


def config(folder: Path, path: Path) -> None:
    path.rename(folder / "config.json")
    run_folder.read_config(folder)


def result(folder: Path, path: Path) -> None:
    path.rename(folder / "result.json")
    report.table([folder])


READERS = {
    "interactions": Reader(
        prepared, lambda: st.one_of(mutated(seeds.interactions()), contents.tables()), 100
    ),
    "item information": Reader(
        described, lambda: st.one_of(mutated(seeds.item_info()), contents.tables()), 60
    ),
    "addresses": Reader(
        lambda _, path: fetch_images.read_urls(path),
        lambda: st.one_of(mutated(seeds.urls()), contents.tables()),
    ),
    "images": Reader(decoded, lambda: mutated(seeds.images()), 300, fixed=SLACK + 16 * PIXELS),
    "zip": Reader(
        looked_up,
        lambda: st.one_of(mutated(seeds.zips()), contents.zips()),
        fixed=SLACK + 2 * LARGEST,
    ),
    "tar": Reader(
        looked_up,
        lambda: st.one_of(mutated(seeds.tars()), contents.tars()),
        fixed=SLACK + 2 * LARGEST,
    ),
    "LMDB": Reader(looked_up, lambda: mutated(seeds.lmdbs()), fixed=SLACK + 2 * LARGEST),
    "weights": Reader(lambda _, path: read_tensors(path), lambda: mutated(seeds.weights()), 150),
    "features": Reader(matrix, lambda: mutated(seeds.features()), 150),
    "config.json": Reader(
        config, lambda: st.one_of(mutated(seeds.configs()), contents.json_of(seeds.configs()))
    ),
    "an index of weights": Reader(
        indexed, lambda: st.one_of(mutated(seeds.indices()), contents.json_of(seeds.indices()))
    ),
    "result.json": Reader(
        result, lambda: st.one_of(mutated(seeds.results()), contents.json_of(seeds.results()))
    ),
}


def stop(*_):
    raise TimeoutError(f"reading took more than {SECONDS} seconds")


@pytest.fixture
def bounded(monkeypatch):
    """Lower limits, so that what is beyond them can be seen, and an end to waiting."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS)
    monkeypatch.setattr(source, "LARGEST", LARGEST)
    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(
    read: Callable[[Path, Path], object],
    folder: Path,
    content: bytes,
    *,
    most: int,
    name: str = "x",
) -> None:
    """Reads one file, which must end in a result or in one line that names it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "x"
    path.write_bytes(content)
    signal.alarm(SECONDS)
    try:
        with at_most(most), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder, path)
    except UserError as error:
        check_line(error, folder)
    except ValueError as error:
        # Only of an image by itself, whose reader does not know where it comes from.
        if read is not decoded:
            raise
        check_line(error)
    finally:
        signal.alarm(0)


def tried(count: int) -> settings:
    return settings(
        max_examples=MORE or count,
        derandomize=not MORE,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if MORE else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.parametrize("name", READERS)
def test_any_file_is_read_or_refused_in_one_line(name, tmp_path, bounded):
    reader = READERS[name]

    @tried(reader.examples)
    @given(content=reader.files())
    def check(content):
        most = reader.fixed + reader.times * len(content)
        run(reader.read, tmp_path / "example", content, most=most)

    check()


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
        found = load(copy)
        found.item_ids(), found.user_ids(), item_info.load(found)
        ImageStore(copy, size=8).load(np.arange(1, found.num_items))

    @tried(25)
    @given(content=mutated([whole]))
    def check(content):
        run(read, tmp_path / "example", content, most=SLACK + 100 * len(content))

    check()


@pytest.mark.parametrize("file", ["test_top_k.parquet", "metrics.jsonl"])
def test_a_damaged_file_of_a_run_is_read_or_refused(file, dataset, tmp_path, bounded):
    top = pl.DataFrame(
        {"user_id": ["u0", "u0"], "rank": [1, 2], "item_id": ["i1", "i2"], "score": [2.0, 1.0]}
    ).with_columns(pl.col("rank").cast(pl.Int32), pl.col("score").cast(pl.Float32))
    buffer = io.BytesIO()
    top.write_parquet(buffer)
    lines = b"".join(b'{"step": %d, "train/loss": 0.5}\n' % step for step in range(1, 9))
    settings = {"train": {}, "dataset": {"path": str(dataset), "split": LEAVE_ONE_OUT}}

    def read(folder: Path, path: Path) -> None:
        path.rename(folder / file)
        (folder / "config.json").write_text(json.dumps(settings))
        if file == "metrics.jsonl":
            run_folder.MetricsLog(folder, continue_from=4).__exit__(None, None, None)
        else:
            examples.show(folder, users=2, seed=0)

    @tried(25)
    @given(content=mutated([lines if file == "metrics.jsonl" else buffer.getvalue()]))
    def check(content):
        run(read, tmp_path / "example", content, most=SLACK + 100 * len(content))

    check()


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
