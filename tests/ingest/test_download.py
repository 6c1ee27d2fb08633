import hashlib
import json
import re
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from pixelrec_jax.ingest import download
from pixelrec_jax.system.errors import UserError

INTERACTIONS = b"item_id,user_id,timestamp\n" + b"i1,u1,1\n" * 300_000  # several chunks
ITEMS = b"item_id,view_number\n"
COVERS = b"archive" * 1000
IDS = {name: f"{name:-<28}" for name in ("200k", "1m", "full", "items")}
FOLDERS = {
    download._INTERACTIONS: {
        "Pixel1M.csv": IDS["1m"],
        "Pixel200K.csv": IDS["200k"],
        "PixelRec.csv": IDS["full"],
    },
    download._ITEMS: {"Pixel200K_item_info.csv": IDS["items"]},
}
FILES = {
    IDS["200k"]: ("Pixel200K.csv", INTERACTIONS),
    IDS["full"]: ("PixelRec.csv", b"full"),
    IDS["items"]: ("Pixel200K_item_info.csv", ITEMS),
    download._COVERS: ("cover.tar.gz", COVERS),
}


class _Handler(BaseHTTPRequestHandler):
    """Answers as drive.google.com does."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        drive_id = urllib.parse.parse_qs(url.query)["id"][0]
        if url.path == "/embeddedfolderview":
            return self.page(
                "<title>Folder</title>"
                + "".join(
                    f'<a href="https://drive.google.com/file/d/{key}/view">{name}</a>'
                    for name, key in FOLDERS[drive_id].items()
                )
            )
        self.server.fetched.append(drive_id)
        if drive_id in self.server.used_up:
            error = "Too many users have viewed or downloaded this file recently."
            return self.page(f'<p class="uc-error-subcaption">{error}</p>')
        return self.file(*FILES[drive_id], breaks=drive_id in self.server.breaking)

    def page(self, text):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", len(text))
        self.end_headers()
        self.wfile.write(text.encode())

    def file(self, name, content, *, breaks):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.server.sent.append((name, start))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Disposition", f'attachment; filename="{name}"')
        self.send_header("Content-Length", len(content) - start)
        self.send_header("ETag", '"v1"')
        self.end_headers()
        self.wfile.write(content[start : len(content) // 2 if breaks else None])
        self.close_connection = True


@pytest.fixture
def google(monkeypatch):
    """A stand-in for Google Drive, on this machine, that gdown is led to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.fetched, server.sent, server.breaking, server.used_up = [], [], set(), set()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    send = requests.adapters.HTTPAdapter.send

    def send_here(self, request, **options):
        host = f"http://127.0.0.1:{server.server_address[1]}"
        request.url = request.url.replace("https://drive.google.com", host)
        return send(self, request, **(options | {"proxies": {}}))

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send_here)
    monkeypatch.setitem(
        download.DATASETS, "pixel200k", download._parts("pixel200k", sha256(INTERACTIONS))
    )
    yield server
    server.shutdown()
    server.server_close()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def run(out, *parts, dataset="pixel200k"):
    return download.download(dataset, out, parts=parts, drive=download.GoogleDrive(retries=0))


def test_the_files_of_a_dataset_and_their_hashes(tmp_path, google):
    found = run(tmp_path)
    assert {name: facts["sha256"] for name, facts in found.items()} == {
        "interactions/Pixel200K.csv": sha256(INTERACTIONS),
        "items/Pixel200K_item_info.csv": sha256(ITEMS),
        "covers/cover.tar.gz": sha256(COVERS),
    }
    assert (tmp_path / "covers" / "cover.tar.gz").read_bytes() == COVERS
    assert json.loads((tmp_path / "download.json").read_text()) == found


def test_what_is_there_is_not_fetched_again(tmp_path, google):
    run(tmp_path, "interactions", "covers")
    google.fetched.clear()
    assert list(run(tmp_path)) == [
        "interactions/Pixel200K.csv",
        "items/Pixel200K_item_info.csv",
        "covers/cover.tar.gz",
    ]
    assert google.fetched == [IDS["items"]]
    assert len(json.loads((tmp_path / "download.json").read_text())) == 3


def test_a_file_put_there_is_taken(tmp_path, google):
    (tmp_path / "interactions").mkdir()
    (tmp_path / "interactions" / "Pixel200K.csv").write_bytes(INTERACTIONS)
    assert list(run(tmp_path, "interactions")) == ["interactions/Pixel200K.csv"]
    assert not google.fetched


def test_an_interrupted_download_goes_on_where_it_ended(tmp_path, google):
    google.breaking.add(IDS["200k"])
    with pytest.raises(UserError, match=r"cannot get Pixel200K.csv .* start again") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "interactions" / "Pixel200K.csv").exists()
    google.breaking.clear()
    google.sent.clear()
    run(tmp_path, "interactions")
    # The first answer tells the name, the second brings the rest.
    assert google.sent == [("Pixel200K.csv", 0), ("Pixel200K.csv", 2**20)]
    assert [path.name for path in (tmp_path / "interactions").iterdir()] == ["Pixel200K.csv"]
    assert (tmp_path / "interactions" / "Pixel200K.csv").read_bytes() == INTERACTIONS


def test_names_are_matched_as_words(tmp_path, google):
    found = run(tmp_path, "interactions", dataset="pixelrec")
    assert list(found) == ["interactions/PixelRec.csv"]


def test_a_folder_without_the_dataset_says_what_it_holds(tmp_path, google):
    with pytest.raises(UserError, match=r"no file named pixel8m; it holds Pixel1M.csv, Pixel200K"):
        run(tmp_path, dataset="pixel8m")


def test_a_used_up_quota_is_one_line(tmp_path, google):
    google.used_up.add(download._COVERS)
    with pytest.raises(
        UserError, match=r"Too many users .* https://drive.google.com/file"
    ) as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)
    assert len(json.loads((tmp_path / "download.json").read_text())) == 2  # what came before


def test_a_damaged_file_is_told_and_can_be_fetched_anew(tmp_path, google):
    run(tmp_path)
    file = tmp_path / "interactions" / "Pixel200K.csv"
    file.write_bytes(INTERACTIONS[:-1] + b"x")
    with pytest.raises(UserError, match=r"not what was downloaded.*expected"):
        run(tmp_path)
    file.unlink()
    run(tmp_path)
    assert file.read_bytes() == INTERACTIONS


def test_another_hash_than_the_known_one_is_told(tmp_path, google, monkeypatch):
    monkeypatch.setitem(FILES, IDS["200k"], ("Pixel200K.csv", b"other"))
    other = sha256(b"other")
    with pytest.raises(UserError, match=f"{other}, expected {sha256(INTERACTIONS)}"):
        run(tmp_path)
    assert (tmp_path / "covers" / "cover.tar.gz").exists()  # the rest is downloaded all the same


def test_no_network_is_one_line(tmp_path, google):
    google.shutdown()
    google.server_close()
    with pytest.raises(UserError, match="ConnectionError") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_disk_that_is_too_small_is_told_before_it_is_full(tmp_path, google, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"needs 2 MB more, .* has 0 MB; free disk space"):
        run(tmp_path, "interactions")


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(UserError, match="pip install 'gdown"):
        download.GoogleDrive()


@pytest.mark.parametrize(
    ("text", "reason"), [("{", "is not valid JSON"), ('{"a": 1}', "has a=1"), ("[]", r"has \[\]")]
)
def test_a_foreign_manifest_is_refused(tmp_path, google, text, reason):
    (tmp_path / "download.json").write_text(text)
    with pytest.raises(UserError, match=rf"download.json {reason} .*; remove it and start again"):
        run(tmp_path)


def test_unknown_parts_are_named(tmp_path, google):
    with pytest.raises(UserError, match="did you mean 'covers'"):
        run(tmp_path, "cover")


@pytest.mark.parametrize("name", ["\x1b[31mPixel200K.csv", "../Pixel200K.csv", "/a/Pixel200K.csv"])
def test_names_that_are_not_those_of_files_below_the_folder_are_refused(tmp_path, name):
    class Drive:
        def list_folder(self, source):
            return [("id", name)]

    with pytest.raises(UserError, match="not the name of a file below --out") as caught:
        download.download("pixel200k", tmp_path, parts=["interactions"], drive=Drive())
    assert str(caught.value).isprintable()
