"""A file of weights comes back as it was written, and what is not one is refused."""

import os

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open

from pixelrec_jax.weights import files
from tests.weights.refusals import refusal

TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 2), np.float16),
    "half": np.ones(3, np.float16),
    "brain": np.ones((2, 2), ml_dtypes.bfloat16),
    "count": np.array([1, 2]),
}


def _assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor)


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "model.safetensors"
    files.write_tensors(path, TENSORS)
    return path


def test_what_is_written_is_read(weights_file):
    _assert_same(files.read_tensors(weights_file), TENSORS)
    assert [path.name for path in weights_file.parent.iterdir()] == ["model.safetensors"]


def test_a_written_file_says_what_transformers_asks(weights_file):
    with safe_open(weights_file, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_others_may_read_what_is_written(weights_file):
    umask = os.umask(0o022)
    try:
        files.write_tensors(weights_file, TENSORS)
    finally:
        os.umask(umask)
    assert weights_file.stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written_is_one_error(tmp_path):
    place = tmp_path / "missing" / "model.safetensors"
    assert "cannot be written" in refusal(lambda path: files.write_tensors(path, TENSORS), place)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".txt"])
def test_the_content_decides_how_a_file_is_read(tmp_path, suffix):
    expected = {"half": TENSORS["half"]}
    path = tmp_path / f"x{suffix}"
    for new in (True, False):
        tensors = {"half": torch.ones(3).half()}
        torch.save(tensors, path, _use_new_zipfile_serialization=new)
        _assert_same(files.read_tensors(path), expected)
    files.write_tensors(path, expected)
    _assert_same(files.read_tensors(path), expected)


def test_a_truncated_file_is_refused(weights_file):
    whole = weights_file.read_bytes()
    for length in (9, 100, len(whole) - 1):
        weights_file.write_bytes(whole[:length])
        assert "not a readable safetensors file" in refusal(files.read_tensors, weights_file)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for content in (
        b"",
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        path.write_bytes(content)
        message = refusal(files.read_tensors, path)
        assert "neither a safetensors nor a PyTorch file" in message
        assert repr(content[:20]) in message


def test_a_file_that_cannot_be_opened_is_called_nothing_else(weights_file, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    assert "cannot be read (FileNotFoundError" in refusal(
        files.read_tensors, weights_file.with_name("missing")
    )
    monkeypatch.setattr(files, "open_regular", refuse)  # root may open anything
    message = refusal(files.read_tensors, weights_file)
    assert "cannot be read (PermissionError" in message
    assert "fetch" not in message


def test_a_type_that_numpy_lacks_is_refused(tmp_path):
    header = b'{"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    assert "float8" in refusal(files.read_tensors, path)
