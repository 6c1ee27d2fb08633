"""Object storage: copies of datasets and files, a whole run on gs://, and what cannot be done."""

import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest

from pixelrec_jax.data import copies, features
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.runs import report, run_folder
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.runs.resume import restore_newest
from pixelrec_jax.system import files, storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from pixelrec_jax.weights.files import locate
from tests import subprocesses
from tests.described import made_from
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PIXELREC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def remote(toy_dataset, tmp_path):
    """A dataset behind a URL, and its folder."""
    folder = tmp_path / "remote" / "toy"
    shutil.copytree(toy_dataset, folder)
    return f"file://{folder}", folder


def test_a_copy_is_the_dataset_and_has_images_once_they_are_asked_for(remote, toy_dataset):
    url, _ = remote
    opened, local = load_interactions(url), load_interactions(toy_dataset)
    assert opened.manifest == local.manifest
    np.testing.assert_array_equal(opened.items, local.items)
    assert opened.item_ids().equals(local.item_ids())
    assert not (opened.directory / "images").exists()

    every = np.arange(local.num_items)
    images = ImageStore(opened.directory, size=16).load(every)
    np.testing.assert_array_equal(images, ImageStore(toy_dataset, size=16).load(every))


def test_a_copy_is_made_once_and_completed_after_an_interruption(remote, monkeypatch):
    url, _ = remote
    copied = load_interactions(url).directory
    (copied / "items.npy").unlink()
    (copied / "offsets.npy").write_bytes(b"cut")
    fetched, download = [], storage.download

    def counting(url, target):
        fetched.append(url.rpartition("/")[2])
        download(url, target)

    monkeypatch.setattr(storage, "download", counting)
    assert load_interactions(url).directory == copied
    assert sorted(fetched) == ["items.npy", "offsets.npy"]
    load_interactions(url)
    assert len(fetched) == 2
    assert not list(copied.glob("*.part")) + list(copied.glob("*.tmp"))


def test_processes_that_start_together_copy_once(remote, capfd):
    url, _ = remote
    script = (
        "from pixelrec_jax.data.interactions import load_interactions\n"
        f"print(load_interactions({url!r}).num_items)"
    )
    command = [sys.executable, "-c", script]
    with subprocesses.started(command) as one, subprocesses.started(command) as other:
        outputs, errors = zip(one.communicate(), other.communicate(), strict=True)
    assert set(outputs) == {f"{load_interactions(url).num_items}\n"}
    assert "".join(errors).count("copying") == 1


def test_another_content_is_another_copy(remote):
    url, folder = remote
    before = load_interactions(url).directory
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    assert load_interactions(url).directory != before


def test_content_that_is_not_the_manifests_is_refused(remote, cache):
    url, folder = remote
    items = bytearray((folder / "items.npy").read_bytes())
    items[-1] ^= 1
    (folder / "items.npy").write_bytes(items)
    with pytest.raises(UserError, match=r"items.npy has other content than its manifest says"):
        load_interactions(url)
    assert not list(cache.rglob("items.npy*"))


def test_a_manifest_cannot_write_outside_of_its_copy(remote, tmp_path):
    url, folder = remote
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../outside"] = {"bytes": 3, "sha256": "0" * 64}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json has files\['../../outside'\]"):
        load_interactions(url)


def test_a_full_disk_is_said_before_anything_is_copied(remote, monkeypatch):
    url, _ = remote
    usage = shutil.disk_usage(".")._replace(free=10)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"GB free; name a folder on another disk .*PIXELREC_CACHE"):
        load_interactions(url)


def test_features_lie_beside_a_remote_dataset_or_have_a_url(remote, tmp_path):
    url, folder = remote
    dataset = load_interactions(url)
    matrix = np.zeros((dataset.num_items, 3), np.float32)
    for value, name in ((1, "features.npy"), (2, "other.npy")):
        matrix[1:] = value
        np.save(folder / name, matrix)
    here = features.provenance(folder / "features.npy")
    here.write_text(json.dumps(made_from(features.item_ids_digest(dataset))))

    beside = features.locate("features.npy", dataset.directory)
    assert features.FeatureStore(beside, dataset).load(np.array([5]))[0, 0] == 1
    assert features.provenance(beside).exists()
    assert features.locate("features.npy", dataset.directory) == beside  # copied once
    elsewhere = features.locate(f"{url}/other.npy", dataset.directory)
    assert features.FeatureStore(elsewhere, dataset).load(np.array([5]))[0, 0] == 2

    matrix[1:] = 3
    os.utime(folder / "features.npy", (0, 0))
    np.save(folder / "features.npy", matrix)
    changed = features.locate("features.npy", dataset.directory)
    assert features.FeatureStore(changed, dataset).load(np.array([5]))[0, 0] == 3
    assert features.locate("f.npy", tmp_path) == tmp_path / "f.npy"  # a local dataset


def test_weights_have_urls_too(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert locate(f"file://{tmp_path}/model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: load_interactions("file:///nowhere/data"),
            "manifest.json: there is no such file, so .* not a prep",
        ),
        (lambda: load_interactions("nope://bucket/data"), "the protocol nope:// is unknown"),
        (
            lambda: load_interactions("gs://bucket/data"),
            "package that is not installed; pip install gcsfs",
        ),
        (lambda: storage.path("gs://bucket/run"), "pip install gcsfs"),
        (lambda: storage.path("s3://bucket/run"), "on gs://, not on s3://"),
        (lambda: locate("file:///nowhere/model.safetensors"), "there is no such file"),
        (lambda: locate("file:///usr"), "is a folder; name a file in it"),
    ],
)
def test_what_cannot_be_reached_is_one_line(call, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    with pytest.raises(UserError, match=message):
        call()


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("programs.prepare", ["--interactions=x.csv", "--out=gs://bucket/data"]),
        ("programs.prepare", ["--interactions=gs://bucket/x.csv", "--out=data"]),
        ("programs.toy", ["--out=gs://bucket/raw"]),
    ],
)
def test_programs_that_write_datasets_say_how_to_copy(module, options, tmp_path):
    process = subprocesses.run(
        [sys.executable, "-m", f"pixelrec_jax.{module}", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert process.returncode == 2
    assert "gcloud storage cp --recursive" in process.stderr
    assert process.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_on_gs_is_the_run_on_disk_and_continues(bucket, toy_dataset, tmp_path, capsys):
    dataset = f"{bucket}/data/toy"
    storage.filesystem(bucket).put(str(toy_dataset), dataset, recursive=True)
    config = tiny_config("user=mf,item=id,dataset=toy", toy_dataset)
    # Few checkpoints: each takes a hundred requests.
    config.train.update({"epochs": 2, "batch_size": 64, "log_every": 2, "checkpoint_every": 7})
    expected = train.train_and_evaluate(config, tmp_path / "run")

    place = storage.path(f"{bucket}/runs/id")
    config.dataset.path, config.train.epochs = dataset, 1
    train.train_and_evaluate(config, place)
    config.train.epochs = 2  # continues from the checkpoint
    assert train.train_and_evaluate(config, place) == expected
    assert "continuing from step" in capsys.readouterr().err

    def losses(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [(record["step"], record["train/loss"]) for record in map(json.loads, lines)]

    assert losses(place) == losses(tmp_path / "run")
    assert list((place / "tensorboard").glob("events.out.tfevents.*"))
    assert report.table([str(place)]) == report.table([tmp_path / "run"])
    config.width = 8
    with pytest.raises(UserError, match="holds a run with another config"):
        train.train_and_evaluate(config, place)


def test_a_damaged_checkpoint_on_gs_is_marked_until_another_replaces_it(bucket):
    place = storage.path(f"{bucket}/runs/damaged/checkpoints")
    state = {"x": np.arange(3.0, dtype=np.float32)}
    shapes = {"x": jax.numpy.zeros(3)}

    def opened():
        return Checkpoints(place, metric="ndcg@10")

    def newest(checkpoints):
        return restore_newest(checkpoints, lambda step: checkpoints.restore(step, shapes))

    with opened() as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state, {}, None)
    (place / "2" / "_CHECKPOINT_METADATA").write_text("{}")
    with opened() as checkpoints:
        step, _, (line,) = newest(checkpoints)
        assert (step, checkpoints.steps) == (1, [1])
        assert f"{place}/2.damaged marks it; continuing from step 1" in line
    with opened() as checkpoints:
        assert (newest(checkpoints)[0], checkpoints.steps) == (1, [1])
        for step in (2, 3):  # in the place of the damaged one; then the first one is deleted
            checkpoints.save(step, state, {}, None)
    with opened() as checkpoints:
        assert (newest(checkpoints)[0], checkpoints.steps) == (3, [3, 2])
        np.testing.assert_array_equal(checkpoints.restore(2, shapes)["x"], state["x"])
    assert sorted(path.name for path in place.iterdir()) == ["2", "3"]


def test_objects_appear_whole_or_not_at_all(bucket):
    path = storage.path(f"{bucket}/half.json")
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert not path.exists()
    files.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_bucket_that_is_not_there_is_said_at_once(bucket):
    with pytest.raises(UserError, match="there is no bucket 'other'"):
        storage.path("gs://other/run")
    with pytest.raises(UserError, match="holds no run"):
        run_folder.read_config(storage.path(f"{bucket}/runs/none"))
