import contextlib
import csv
import os
import signal
import sys
import time

import pytest
from PIL import Image

from pixelrec_jax.ingest import fetch_images, web
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.conftest import ROOT
from tests.ingest.badserver import BadServer, picture
from tests.ingest.clock import FakeClock

NAMES = {
    "images.example": ["127.0.0.1"],
    "rebound.example": ["127.0.0.1"],  # looks public and is not
    "inner.example": ["93.184.216.34", "10.0.0.5"],
    "mapped.example": ["::ffff:127.0.0.1"],
}


@pytest.fixture
def server():
    with BadServer() as server:
        yield server


def fetcher(clock=None, **limits):
    async def resolver(host, port):
        return NAMES.get(host, [host])

    settings = {"retries": 2, "timeout": 5, "rate": 1e6, "max_bytes": 100_000}
    settings |= {"allow_hosts": frozenset({"images.example"})} | limits
    clock = clock or FakeClock()
    return web.Fetcher(
        web.Limits(**settings), clock=web.Clock(clock.now, clock.sleep), resolver=resolver
    )


def write_urls(folder, server, paths):
    file = folder / "urls.csv"
    root = f"http://images.example:{server.server_address[1]}/"
    with file.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["item_id", "url"])
        for item_id, path in paths.items():
            rows.writerow([item_id, path if "://" in path.partition("?")[0] else root + path])
    return file


def failures(folder):
    with (folder / "out.failures.csv").open(newline="") as file:
        return {row["item_id"]: row["reason"] for row in csv.DictReader(file)}


def run(folder, server, paths, **limits):
    """Fetches and returns {item id: reason} of what failed; asserts that nothing half is left."""
    with contextlib.suppress(UserError):
        fetch_images.fetch(write_urls(folder, server, paths), folder / "out", fetcher(**limits))
    failed = failures(folder) if (folder / "out.failures.csv").exists() else {}
    left = {path.name for path in (folder / "out").iterdir()}
    assert {name.rpartition(".")[0] for name in left} == set(paths) - set(failed)
    return failed


def test_images_are_named_by_item_and_real_format(tmp_path, server):
    paths = {"i1": "image", "i2": "png", "a.b-_": "webp", "i4": "hop/1", "i5": "chunked"}
    counts = fetch_images.fetch(
        write_urls(tmp_path, server, paths), tmp_path / "out", fetcher(concurrency=3)
    )
    assert counts == {"fetched": 5, "there": 0}
    names = ["a.b-_.webp", "i1.jpg", "i2.png", "i4.jpg", "i5.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert (tmp_path / "out" / "i5.jpg").read_bytes() == picture()
    with Image.open(tmp_path / "out" / "a.b-_.webp") as image:
        assert image.format == "WEBP"
    assert server.requests["image"]["accept-encoding"] == "identity"
    assert not (tmp_path / "out.failures.csv").exists()


@pytest.mark.parametrize(
    ("path", "reason", "hits"),
    [
        ("gone", "HTTP 404", 1),
        ("part", "HTTP 206", 1),
        ("empty", "empty file", 1),
        ("broken", "HTTP 500 (tried 3 times)", 3),
        ("closed", "asks to come back in", 1),
        ("loop", "more than 5 redirects", 6),
        ("html", "not a JPEG, PNG or WEBP image", 1),
        ("gif", "not a JPEG, PNG or WEBP image", 1),
        ("header", "cannot be decoded", 1),
        ("half", "cannot be decoded", 1),
        ("truncated", "closed connection", 3),
        ("hangup", "disconnected", 3),
        ("nonsense", "RemoteProtocolError", 3),
        ("large", "larger than 100,000 bytes (1,000,000,000)", 1),
        ("endless", "larger than 100,000 bytes", 1),
        ("gzip", "sent as 'gzip'", 1),
    ],
)
def test_failures_are_listed_with_their_reason(tmp_path, server, path, reason, hits):
    assert reason in run(tmp_path, server, {"bad": path, "good": "image"})["bad"]
    assert server.hits[path] == hits


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_not_decoded(tmp_path, server):
    assert run(tmp_path, server, {"i1": "bomb"}) == {"i1": "too large"}


@pytest.mark.parametrize("path", ["hang", "drip"])
def test_slow_answers_end_in_time(tmp_path, server, path):
    failed = run(tmp_path, server, {"bad": path}, timeout=0.25, retries=1)
    assert failed == {"bad": "no complete answer in 0.25 s (tried 2 times)"}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:{port}/image", "port {port}"),
        ("http://127.0.0.1/image", "127.0.0.1 is not on the public internet"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254 is not on the public"),
        ("http://[::1]/image", "::1 is not on the public internet"),
        ("http://[::ffff:127.0.0.1]/", "::ffff:127.0.0.1 is not on the public internet"),
        ("http://rebound.example/image", "rebound.example (127.0.0.1) is not on the public"),
        ("http://inner.example/image", "inner.example (10.0.0.5) is not on the public"),
        ("https://mapped.example/image", "mapped.example (::ffff:127.0.0.1) is not on the"),
        ("http://2130706433/image", "unusual spelling"),
        ("http://user:secret@images.example/image", "user name"),
        ("file:///etc/passwd", "not an http or https URL"),
    ],
)
def test_nothing_but_the_public_internet_is_reached_even_by_redirects(
    tmp_path, server, url, reason
):
    port = server.server_address[1]
    url = url.format(port=port)
    failed = run(tmp_path, server, {"i1": url, "i2": f"to?{url}"})
    assert set(failed) == {"i1", "i2"}
    assert all(reason.format(port=port) in why for why in failed.values())
    assert server.hits == {"to": 1}


def test_failures_that_pass_are_tried_again_after_growing_waits(tmp_path, server):
    clock = FakeClock()
    assert run(tmp_path, server, {"i1": "recovers"}, clock=clock) == {}
    assert server.hits["recovers"] == 3
    assert clock.waits == [1, 2]


def test_retry_after_holds_back_the_whole_host(tmp_path, server):
    clock = FakeClock()
    paths = {"i1": "busy", "i2": "image"}
    assert run(tmp_path, server, paths, clock=clock, concurrency=1) == {}
    assert clock.time == pytest.approx(7, abs=1e-3)
    assert clock.waits[:2] == [1, 6]


def test_requests_at_once_keep_the_pace_too(tmp_path, server):
    clock = FakeClock()
    paths = {f"i{n}": "image" for n in range(20)}
    assert run(tmp_path, server, paths, clock=clock, concurrency=8, rate=5) == {}
    assert server.hits["image"] == 20
    assert clock.time == pytest.approx(19 / 5)


def test_what_is_there_is_not_fetched_again(tmp_path, server):
    paths = {"i1": "image", "i2": "recovers", "i3": "gone"}
    assert set(run(tmp_path, server, paths, retries=0)) == {"i2", "i3"}
    (tmp_path / "out" / "i3.jpeg").write_bytes(picture())  # found elsewhere
    counts = fetch_images.fetch(tmp_path / "urls.csv", tmp_path / "out", fetcher(retries=1))
    assert counts == {"fetched": 1, "there": 2}
    assert server.hits == {"image": 1, "recovers": 3, "gone": 1}
    assert not (tmp_path / "out.failures.csv").exists()


def test_a_failed_write_is_one_line_and_leaves_no_half_file(tmp_path, server, monkeypatch):
    def full(path, content):
        path.open("wb").write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    file = write_urls(tmp_path, server, {"i1": "image", "i2": "png"})
    with pytest.raises(UserError, match="No space left on device; start again"):
        fetch_images.fetch(file, tmp_path / "out", fetcher())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("path", ["image", "gone"])
def test_a_report_that_cannot_be_written_is_one_line(tmp_path, server, path):
    (tmp_path / "out.failures.csv").mkdir()
    file = write_urls(tmp_path, server, {"i1": path})
    with pytest.raises(UserError, match=r"cannot write to .*out.failures.csv"):
        fetch_images.fetch(file, tmp_path / "out", fetcher())


@pytest.mark.parametrize(
    "item_id", ["../x", "a/b", "a..b", "..", ".hidden", "", "a\\b", "C:x", "ü"]
)
def test_ids_that_could_leave_the_folder_are_refused(tmp_path, server, item_id):
    file = write_urls(tmp_path, server, {"good": "image", item_id: "image"})
    with pytest.raises(UserError, match="cannot be file names"):
        fetch_images.fetch(file, tmp_path / "out", fetcher())
    assert not server.hits
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        ("item,url\n1,http://x/\n", "has no column item_id; it has item, url"),
        ("item_id,url\n1,http://x/,3\n", "not a valid CSV"),
        ("item_id,url\n1,http://x/\n1,http://y/\n", "'1' more than once"),
    ],
)
def test_wrong_lists_are_one_line(tmp_path, text, reason):
    (tmp_path / "urls.csv").write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        fetch_images.fetch(tmp_path / "urls.csv", tmp_path / "out", fetcher())
    assert "\n" not in str(caught.value)


def start(*options):
    argv = [sys.executable, "-m", "pixelrec_jax.programs.fetch_images", *options]
    return subprocesses.started(argv, cwd=ROOT)


def test_ctrl_c_leaves_whole_files_and_the_next_run_goes_on(tmp_path, server):
    root = f"http://127.0.0.1:{server.server_address[1]}"
    paths = {f"i{n}": f"{root}/image" for n in range(4)}
    file = write_urls(tmp_path, server, paths | {"i4": f"{root}/drip"})
    options = [f"--urls={file}", f"--out={tmp_path / 'out'}", "--allow_hosts=127.0.0.1"]
    with start(*options, "--rate=1000") as process:
        while len(os.listdir(tmp_path / "out") if (tmp_path / "out").exists() else []) < 4:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        while not server.hits["drip"]:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    expected = "error: interrupted; start the same command again to continue\n"
    assert (process.returncode, error) == (130, expected)
    assert sorted(os.listdir(tmp_path / "out")) == [f"i{n}.jpg" for n in range(4)]

    write_urls(tmp_path, server, paths | {"i4": f"{root}/png", "i5": f"{root}/gone"})
    with start(*options) as process:
        output, error = process.communicate()
    assert process.returncode == 2
    assert error.startswith("error: 1 of 6 images could not be fetched, such as that of 'i5'")
    assert error.count("\n") == 1
    assert output == ""
    assert server.hits == {"image": 4, "drip": 1, "png": 1, "gone": 1}
