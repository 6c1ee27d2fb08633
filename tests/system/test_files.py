"""Inputs that are not regular files are refused at once, wherever files of others are opened."""

import json
import os
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from pixelrec_jax.data.features import FeatureStore, provenance
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import fetch_images, interactions_file, item_info
from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.ingest.sources.folder import FolderImages
from pixelrec_jax.ingest.tfds import items
from pixelrec_jax.ingest.tfds.build import build
from pixelrec_jax.runs import examples, report, run_folder
from pixelrec_jax.system import files
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights.files import read_tensors
from tests.tiny import interactions_of, tiny_config

SECONDS = 20


@pytest.fixture(autouse=True)
def _no_waiting():
    def stop(*_):
        raise TimeoutError("it waits for a pipe, or reads without end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


KINDS = {"pipe": "named pipe", "endless": "device", "socket": "socket"}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def make(path: Path, kind: str) -> Path:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        here = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # the address of a socket is short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
        os.fchdir(here)
        os.close(here)
    return path


def refused(kind: str, read, *arguments, **options):
    with pytest.raises(
        UserError, match=f"it is a {KINDS[kind]} and not a file|is not a file;"
    ) as error:
        read(*arguments, **options)
    assert "\n" not in str(error.value)


def tfds_of(interactions, place):
    build("own_interactions", str(place), interactions=str(interactions))


READERS = {
    "images": lambda path: open_source(path),
    "interactions": lambda path: interactions_file.read_interactions(path),
    "item information": lambda path: item_info.read_item_info(path),
    "addresses": lambda path: fetch_images.read_urls(path),
    "weights": lambda path: read_tensors(path),
    "features": lambda path: FeatureStore(path, interactions_of([np.arange(1, 5)], 5)),
    "the TFDS builder": lambda path: tfds_of(path, path.parent / "out"),
}


@pytest.mark.parametrize("reader", READERS)
def test_one_file(tmp_path, kind, reader):
    refused(kind, READERS[reader], make(tmp_path / "x", kind))


def test_what_features_were_made_from(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 2), np.float32))
    make(provenance(tmp_path / "x.npy"), "pipe")
    with pytest.raises(UserError, match=r"x\.json cannot be read \(it is a named pipe"):
        FeatureStore(tmp_path / "x.npy", interactions_of([np.arange(1, 5)], 5))


def test_images_of_a_folder(tmp_path, kind):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "i1.png").write_bytes(b"x")
    images = FolderImages(folder)
    make(folder / "i1.png", kind)
    with pytest.raises(ValueError, match=f"it is a {KINDS[kind]} and not a file"):
        images.read("i1")
    assert not FolderImages(folder).ids
    row = {"item_id": "i1"}
    with pytest.raises(UserError, match=f"it is a {KINDS[kind]} and not a file"):
        list(items.examples(row, "i1.png", folder=str(folder), missing="error"))


def test_a_tfds_dataset(tmp_path, kind):
    csv = tmp_path / "x.csv"
    csv.write_text("item_id,user_id,timestamp\na,b,1\n")
    folder = Path(build("own_interactions", str(tmp_path), interactions=str(csv)).data_dir)
    for name in ("features.json", next(folder.glob("*array_record*")).name):
        copy = shutil.copytree(folder, tmp_path / name)
        make(copy / name, kind)
        refused(kind, open_source, copy)


DATASET = ("offsets.npy", "items.npy", "item_ids.arrow", "image_rows.npy", "other", "images/other")


@pytest.mark.parametrize("name", DATASET)
def test_a_prepared_dataset(toy_dataset, tmp_path, kind, name):
    copy = shutil.copytree(toy_dataset, tmp_path / "copy")
    make(copy / name, kind)
    refused(kind, load_interactions, copy)
    refused(kind, ImageStore, copy, size=16)


@pytest.mark.parametrize("name", ["manifest.json", "origin.txt"])
def test_the_list_of_a_prepared_dataset(toy_dataset, tmp_path, name):
    copy = shutil.copytree(toy_dataset, tmp_path / "copy")
    make(copy / name, "pipe")
    refused("pipe", load_interactions, copy)


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "test_top_k.parquet", "checkpoints/3/d/array"]
)
def test_a_run(tmp_path, kind, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    config = tiny_config("user=mf,item=id,dataset=toy")
    (tmp_path / "config.json").write_text(json.dumps(run_folder.storable(config)))
    run_folder.read_config(tmp_path)
    make(tmp_path / name, kind)
    refused(kind, run_folder.read_config, tmp_path)
    refused(kind, examples.show, tmp_path, users=1, seed=0)


def test_the_result_of_a_run(tmp_path, kind):
    make(tmp_path / "result.json", kind)
    refused(kind, report.read_result, tmp_path)


def test_links_to_files_are_files(tmp_path):
    (tmp_path / "x").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    (tmp_path / "nothing").symlink_to(tmp_path / "none")
    assert files.read_bytes(tmp_path / "link") == b"content"
    files.check_folder(tmp_path)
