"""Files that a run reads for hours: what is noticed, and what is not a change."""

import os
import shutil

import numpy as np
import pytest

from pixelrec_jax.data import watched_file
from pixelrec_jax.data.features import FeatureStore
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.data.watched_file import WatchedFile
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import digest


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"content")
    return WatchedFile(path, digest(path))


def _overwrite(path):
    with path.open("r+b") as opened:  # in place, of the same size, under the old time
        opened.write(b"CONTENT")
    os.utime(path, (0, 0))


def _replace(path):
    other = path.with_name("other")
    other.write_bytes(b"another")
    other.replace(path)


def _cut(path):
    os.truncate(path, 3)


def _remove(path):
    path.unlink()


def _remove_folder(path):
    shutil.rmtree(path.parent)


def _to_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "change", [_overwrite, _replace, _cut, _remove, _remove_folder, _to_a_folder]
)
def test_other_content_is_one_line_that_names_the_file(file, change):
    os.utime(file.path, (0, 0))
    file.check()
    change(file.path)
    fault = "is gone" if "remove" in change.__name__ else "has other content"
    for _ in range(2):
        with pytest.raises(UserError, match=f"{file.path} {fault}"):
            file.check()


def test_the_same_content_is_no_change_and_read_once(file, monkeypatch):
    def replace():
        copy = file.path.with_name("copy")
        shutil.copy(file.path, copy)
        copy.replace(file.path)

    for touch in (lambda: os.utime(file.path, (0, 0)), lambda: os.chmod(file.path, 0o600), replace):
        touch()
        file.check()
    monkeypatch.setattr(file, "_measure", lambda _: pytest.fail("reads the file"))
    file.check()


def test_all_files_of_a_dataset_are_watched(toy_dataset, tmp_path):
    shutil.copytree(toy_dataset, tmp_path / "data")
    dataset = load_interactions(tmp_path / "data")
    matrix = tmp_path / "features.npy"
    np.save(matrix, np.zeros((dataset.num_items, 2), np.float32))
    stores = ImageStore(dataset.directory, size=16), FeatureStore(matrix, dataset)
    watched = [*dataset.watched, *stores[0].watched, *stores[1].watched]
    assert {file.path for file in watched} == {
        matrix,
        *(dataset.directory / name for name in dataset.manifest["files"]),
    }
    watched_file.check_all(watched)
    for path in [file.path for file in watched]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{path} has other content since this run started"):
            watched_file.check_all(watched)
        path.write_bytes(whole)
    watched_file.check_all(watched)


def test_small_arrays_do_not_change_with_their_files(toy_dataset, tmp_path):
    """A map would show the change, and end the program with SIGBUS where the file was cut."""
    shutil.copytree(toy_dataset, tmp_path / "data")
    dataset = load_interactions(tmp_path / "data")
    before = dataset.items.copy()
    os.truncate(tmp_path / "data" / "items.npy", 0)
    np.testing.assert_array_equal(dataset.items, before)
    with pytest.raises(ValueError, match="read-only"):
        dataset.items[0] = 1
