"""Images out of a TFDS dataset: which there are, their bytes, and when they count as changed."""

import json
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.ingest.image_shards import write_shards
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.ingest.sources.tfds import TfdsImages
from pixelrec_jax.ingest.tfds.build import build
from pixelrec_jax.system.errors import UserError

ITEMS = [f"i{number}" for number in range(20)]


def draw(folder: Path, shift=0) -> Path:
    folder.mkdir(parents=True)
    for number, item_id in enumerate(ITEMS):
        color = (10 * number, 0, shift if item_id == "i7" else 0)
        Image.new("RGB", (6, 4), color).save(folder / f"{item_id}.png")
    return folder


def dataset(place: Path, images: Path) -> Path:
    return Path(build("own_items", str(place), images=str(images)).data_dir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tfds")
    draw(place / "images")
    return dataset(place, place / "images")


def files(folder):
    images = folder.parents[2] / "images"
    return {item_id: (images / f"{item_id}.png").read_bytes() for item_id in ITEMS}


def test_every_image_comes_back_from_threads_and_pickles(folder):
    images = TfdsImages(folder)
    assert set(images.ids) == set(ITEMS)
    for source in (images, pickle.loads(pickle.dumps(images))):
        with ThreadPoolExecutor(8) as pool:
            assert dict(zip(ITEMS, pool.map(source.read, ITEMS), strict=True)) == files(folder)


def test_the_fingerprint_is_that_of_the_image(folder, tmp_path):
    before = TfdsImages(folder)
    again = TfdsImages(dataset(tmp_path / "again", folder.parents[2] / "images"))
    after = TfdsImages(dataset(tmp_path / "after", draw(tmp_path / "images", shift=99)))
    assert len({before.fingerprint(item_id) for item_id in ITEMS}) == len(ITEMS)
    assert [i for i in ITEMS if before.fingerprint(i) != again.fingerprint(i)] == []
    assert [i for i in ITEMS if before.fingerprint(i) != after.fingerprint(i)] == ["i7"]


def test_what_cannot_be_read_has_a_reason(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    images = TfdsImages(copy)
    other = dataset(tmp_path, draw(tmp_path / "images", shift=99))
    shutil.copytree(other, copy, dirs_exist_ok=True)
    reopened = pickle.loads(pickle.dumps(images))
    assert reopened.read("i8") == files(folder)["i8"]
    with pytest.raises(ValueError, match="is not what it was"):
        reopened.read("i7")
    next(copy.glob("*array_record*")).write_bytes(b"short")
    with pytest.raises(ValueError, match=r"cannot be read .*64KB"):
        pickle.loads(pickle.dumps(images)).read("i8")
    with pytest.raises(UserError, match=r"is damaged: .*64KB"):
        TfdsImages(copy)


class Doubled(tfds.core.GeneratorBasedBuilder):
    """Two images of one item, and one of another."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"item_id": tfds.features.Text(), "image": tfds.features.Image()}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number in range(2):
            yield number, {"item_id": "i1", "image": bytes([number])}
        yield 2, {"item_id": "i2", "image": b"2"}


def test_what_is_no_dataset_of_item_images_is_refused(folder, tmp_path):
    interactions = tmp_path / "x.csv"
    interactions.write_text("item_id,user_id,timestamp\na,b,1\n")
    users = build("own_interactions", str(tmp_path), interactions=str(interactions))
    for path, match in (
        (tmp_path / "nowhere", "is not a TFDS dataset"),
        (folder.parent, "is not a TFDS dataset"),
        (users.data_dir, "has no feature image, item_id"),
    ):
        with pytest.raises(UserError, match=match) as caught:
            TfdsImages(path)
        assert "\n" not in str(caught.value)


def test_two_images_of_an_item_stop_only_what_needs_it(tmp_path):
    builder = Doubled(data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    images = open_source(Path(builder.data_dir))
    for source in (images, pickle.loads(pickle.dumps(images))):
        assert set(source.ids) == {"i2"}
        assert source.ambiguous.keys() == {"i1"}
        assert source.read("i2") == b"2"
    with pytest.raises(UserError, match="two images of item 'i1'; keep one"):
        write_shards(tmp_path / "shards", images, ["i2", "i1"], size=None)


def test_prepare_takes_the_images_of_a_dataset(tmp_path):
    images = draw(tmp_path / "images")
    rows = "".join(f"{item},u,{time}\n" for time, item in enumerate(ITEMS[:5]))
    (tmp_path / "x.csv").write_text("item_id,user_id,timestamp\n" + rows)
    stored = []
    for source in (images, dataset(tmp_path / "d", images)):
        prepare(tmp_path / "x.csv", source, tmp_path / "out", store="resized", image_size=4)
        stored.append(ImageStore(tmp_path / "out", size=4).load(np.arange(6)))
        shutil.rmtree(tmp_path / "out")
    np.testing.assert_array_equal(*stored)


def test_a_dataset_leads_nowhere(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    info = json.loads((copy / "dataset_info.json").read_text())
    own = info["splits"][0]["filepathTemplate"]
    for place in ("..", str(folder), "none"):
        info["splits"][0]["filepathTemplate"] = f"{place}/{own}"
        (copy / "dataset_info.json").write_text(json.dumps(info))
        with pytest.raises(UserError, match="which is outside of it; copy the dataset again"):
            TfdsImages(copy)


EVIL = "evil_features.Evil"
LEGACY = {"type": EVIL, "content": {}}
FEATURES = "tensorflow_datasets.core.features.features_dict.FeaturesDict"


@pytest.mark.parametrize(
    "content",
    [
        {"pythonClassName": EVIL, "text": {}},
        {"python_class_name": EVIL, "text": {}},
        {
            "pythonClassName": FEATURES,
            "featuresDict": {"features": {"x": {"pythonClassName": EVIL}}},
        },
        {"pythonClassName": FEATURES, "jsonFeature": {"json": json.dumps({"x": LEGACY})}},
        LEGACY,
        {"type": FEATURES, "content": {"image": LEGACY}},
        {"type": FEATURES, "content": json.dumps({"jsonFeature": {"json": json.dumps(LEGACY)}})},
        {"type": FEATURES, "content": {"list": [LEGACY]}},
    ],
    ids=range(8),
)
def test_a_dataset_names_no_code_that_is_imported(folder, tmp_path, monkeypatch, content):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "evil_features.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')")
    (copy / "features.json").write_text(json.dumps(content))
    monkeypatch.chdir(copy)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with pytest.raises(UserError, match=rf"class '{EVIL}', which is not one of TFDS") as caught:
        open_source(copy)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mark").exists()
    assert "evil_features" not in sys.modules


@pytest.mark.parametrize("name", ["os.path", "tensorflow_datasets.core.features.", "a/b.C", "x"])
def test_only_classes_below_the_features_of_tfds_are_passed_on(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "features.json").write_text(json.dumps({"pythonClassName": name, "text": {}}))
    with pytest.raises(UserError, match="is not one of TFDS itself"):
        TfdsImages(copy)


@pytest.mark.parametrize("content", ["", "[" * 100_000, "\xff", '{"a": 1}'])
def test_a_dataset_with_damaged_features_is_refused(folder, tmp_path, content):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "features.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match="is not a TFDS dataset") as caught:
        TfdsImages(copy)
    assert "\n" not in str(caught.value)
