"""Whatever a file holds, its reader gives a result or one line, soon, and within a stated memory.

Each reader gets valid files that were changed, files made of parts that mean something to it, and
any bytes. The examples are the same in every run. PIXELREC_FUZZ=5000 tries so many other ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelrec_jax.data import features
from pixelrec_jax.data.images import decode
from pixelrec_jax.ingest import fetch_images
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.runs import report, run_folder
from pixelrec_jax.weights.files import read_tensors
from tests.fuzz import contents, seeds
from tests.fuzz.bounds import LARGEST, PIXELS, SLACK, check_line, run, tried
from tests.fuzz.mutations import mutated
from tests.tiny import interactions_of


@dataclass(frozen=True)
class Reader:
    """How a reader is called, and what it may cost.

    Attributes:
      read: given the folder of one example and the file in it.
      seeds: returns valid files.
      others: strategy of further contents.
      examples: how many are tried.
      times: bytes of memory for each byte of the file, beside `fixed`.
    """

    read: Callable[[Path, Path], object]
    seeds: Callable[[], list[bytes]]
    others: st.SearchStrategy[bytes] = field(default_factory=st.nothing)
    examples: int = 100
    times: int = 100
    fixed: int = SLACK


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
    "interactions": Reader(prepared, seeds.interactions, contents.tables()),
    "item information": Reader(described, seeds.item_info, contents.tables(), examples=60),
    "addresses": Reader(
        lambda _, path: fetch_images.read_urls(path), seeds.urls, contents.tables()
    ),
    "images": Reader(decoded, seeds.images, examples=300, fixed=SLACK + 16 * PIXELS),
    "zip": Reader(looked_up, seeds.zips, contents.zips(), fixed=SLACK + 2 * LARGEST),
    "tar": Reader(looked_up, seeds.tars, contents.tars(), fixed=SLACK + 2 * LARGEST),
    "LMDB": Reader(looked_up, seeds.lmdbs, fixed=SLACK + 2 * LARGEST),
    "weights": Reader(lambda _, path: read_tensors(path), seeds.weights, examples=150),
    "an index of weights": Reader(indexed, seeds.indices, contents.json_of(seeds.indices)),
    "features": Reader(matrix, seeds.features, examples=150),
    "config.json": Reader(config, seeds.configs, contents.json_of(seeds.configs)),
    "result.json": Reader(result, seeds.results, contents.json_of(seeds.results)),
}


@pytest.mark.parametrize("name", READERS)
def test_the_files_that_are_changed_are_valid(name, tmp_path):
    for number, content in enumerate(READERS[name].seeds()):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "x").write_bytes(content)
        READERS[name].read(tmp_path / f"{number}", tmp_path / f"{number}" / "x")


@pytest.mark.parametrize("name", READERS)
def test_any_file_is_read_or_refused_in_one_line(name, tmp_path, bounded):
    reader = READERS[name]

    @tried(reader.examples)
    @given(content=st.one_of(mutated(reader.seeds()), reader.others))
    def check(content):
        most = reader.fixed + reader.times * len(content)
        run(reader.read, tmp_path / "example", content, most=most, alone=reader.read is decoded)

    check()
