"""Preparation of a dataset: ids, order, filters, refusals, and that nothing half-written stays."""

import errno
import hashlib
import os
import sys

import numpy as np
import pytest

from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import image_shards
from pixelrec_jax.ingest import prepare as program
from pixelrec_jax.ingest.summary import summary
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.prepared import HEADER, lines, refused, run


def test_ids_and_order_by_hand(place):
    manifest = run(place)
    stored = load_interactions(place / "out")
    assert stored.user_ids().to_list() == ["b", "a"]
    assert stored.item_ids().to_list() == ["c", "a", "d", "e"]
    assert stored.offsets.tolist() == [0, 0, 3, 7]
    # b: a and d tie at 3 in file order, then c. a: a at 1, then c, d, e tie at 5 in file order.
    assert stored.items.tolist() == [2, 3, 1, 2, 1, 3, 4]
    assert stored.timestamps.tolist() == [3, 3, 9, 1, 5, 5, 5]
    assert (stored.num_users, stored.num_items) == (3, 5)
    assert [a.dtype for a in (stored.offsets, stored.items, stored.timestamps)] == [
        "i8",
        "i4",
        "i8",
    ]
    assert manifest["counts"] == {"users": 2, "items": 4, "interactions": 7}
    assert stored.manifest == manifest


def test_manifest_describes_source_and_files(place):
    manifest = run(place, min_interactions=3)
    source = manifest["source"]
    digest = hashlib.sha256((place / "x.csv").read_bytes()).hexdigest()
    assert (source["file"], source["sha256"]) == ("x.csv", digest)
    assert source["options"]["min_interactions"] == 3
    assert manifest["images"] == {
        "store": "original",
        "size": None,
        "count": 4,
        "placeholders": [],
    }
    out = place / "out"
    on_disk = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert on_disk == {*manifest["files"], "manifest.json"}
    assert "missing_images.csv" not in on_disk
    for name, file in manifest["files"].items():
        content = (place / "out" / name).read_bytes()
        assert file == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


@pytest.mark.parametrize("unit", ["days", "other", "order"])
def test_the_manifest_names_the_unit_that_was_given(place, unit):
    (place / "x.csv").write_text(HEADER + lines(("c", "a", 1_600_000_000 + n) for n in range(3)))
    manifest = run(place, timestamp_unit=unit)
    assert manifest["timestamp_unit"] == unit
    assert f"timestamps    {unit:>13}\n" in summary(manifest, "out") + "\n"
    assert load_interactions(place / "out").manifest["timestamp_unit"] == unit


def test_an_unknown_unit_is_refused(place):
    refused(
        place,
        "--timestamp_unit=secnods is not an option; did you mean 'seconds'",
        timestamp_unit="secnods",
    )


def test_record_i_is_item_i_plus_one(place):
    run(place)
    reds = ImageStore(place / "out", size=4).load(np.arange(6))[:, 0, 0, 0]
    np.testing.assert_allclose(reds, [0, 60, 0, 120, 180, 0], atol=3)  # pad, c, a, d, e, none


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"min_interactions": -1}, "--min_interactions=-1; give 0 or more"),
        ({"min_interactions": 99}, "leaves no users; the most that any of the 2 has is 4"),
        ({"image_size": 0, "store": "resized"}, "--image_size=0; give 1 to 4096"),
        ({"image_size": 64}, "--image_size=64 needs --store=resized"),
        ({"missing": "dropp"}, "--missing=dropp is not an option; did you mean 'drop'"),
        ({"store": "jpeg"}, "--store=jpeg is not an option; known: original, resized"),
    ],
)
def test_bad_options(place, options, match):
    refused(place, match, **options)


def test_absent_inputs(place):
    (place / "x.csv").rename(place / "y.csv")
    refused(place, "interactions file .*x.csv' does not exist")
    (place / "x.csv").mkdir()
    refused(place, "interactions file .*x.csv' is not a file")
    (place / "x.csv").rmdir()
    (place / "y.csv").rename(place / "x.csv")
    (place / "images").rename(place / "pictures")
    refused(place, "--images=.*images does not exist")
    (place / "images").mkdir()
    (place / "images" / "readme.txt").touch()
    refused(place, "--images=.*images holds no images")


def test_occupied_out_is_not_touched_and_an_empty_one_is_used(place):
    out = place / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    refused(place, "--out=.*out exists and is not empty; remove it")
    assert (out / "mine").read_text() == "x"
    (out / "mine").unlink()
    run(place)
    assert load_interactions(out).num_users == 3


@pytest.mark.parametrize(
    ("failure", "becomes", "match"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "no space left on the disk"),
        (RuntimeError("write() failed: No space left on device; writing x"), UserError, "no space"),
        (OSError(errno.EIO, "Input/output error"), UserError, "cannot write .*Input/output error"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_a_failure_midway_leaves_finished_images(place, monkeypatch, failure, becomes, match):
    def fail(*_):
        raise failure

    monkeypatch.setattr(program, "write_columns", fail)
    with pytest.raises(becomes, match=match):
        run(place)
    assert sorted(os.listdir(place)) == ["images", "out.partial", "x.csv"]
    with pytest.raises(becomes, match=match):  # ids only: no image is worth keeping
        program.prepare(place / "x.csv", None, place / "out")
    assert sorted(os.listdir(place)) == ["images", "x.csv"]


@pytest.mark.parametrize("where", ["digest", "sync"])
def test_a_failure_at_the_very_end_leaves_finished_images(place, monkeypatch, where):
    def fail(path):
        if path.name == "offsets.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        return "hash"

    monkeypatch.setattr(program, where, fail)
    with pytest.raises(UserError, match=r"no space left .* uses the images in .*partial"):
        run(place)
    assert len(list((place / "out.partial" / "images").iterdir())) == 2


def test_an_out_that_was_filled_in_the_meantime(place, monkeypatch):
    def seal(*_):
        (place / "out").mkdir()
        (place / "out" / "mine").write_text("x")
        return {}

    monkeypatch.setattr(program, "_seal", seal)
    with pytest.raises(UserError, match="was filled by something else"):
        run(place)
    assert os.listdir(place / "out") == ["mine"]
    assert len(list((place / "out.partial" / "images").iterdir())) == 2


def test_a_folder_of_another_name_is_not_touched(place):
    (place / "images").rename(place / "out.partial")
    with pytest.raises(UserError, match=r"out.partial is needed .* holds something else"):
        program.prepare(place / "x.csv", place / "out.partial", place / "out")
    assert len(list((place / "out.partial").iterdir())) == 4


def test_what_an_interrupted_run_has_left_beside_images_is_gone(place, monkeypatch):
    monkeypatch.setattr(program, "_seal", lambda work: (work / "junk").write_text("") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(place)
    monkeypatch.undo()
    manifest = run(place)
    assert "junk" not in os.listdir(place / "out")
    assert "junk" not in manifest["files"]


def test_interrupted_while_decoding_leaves_nothing_that_is_not_done(place, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_shards, "_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(place)
    assert sorted(os.listdir(place)) == ["images", "x.csv"]


def test_a_dataset_without_images_is_for_ids(place):
    manifest = program.prepare(place / "x.csv", None, place / "out")
    assert manifest["images"] is None
    assert load_interactions(place / "out").num_items == 5
    with pytest.raises(UserError, match=r"was prepared without images; .*--images=DIR"):
        ImageStore(place / "out", size=8)


def test_two_preparations_do_not_write_the_same_folder(place, monkeypatch):
    def second(*_):
        with pytest.raises(UserError, match="another process is preparing --out="):
            run(place)
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "write_columns", second)
    with pytest.raises(KeyboardInterrupt):
        run(place)


def command(*arguments):
    return subprocesses.run([sys.executable, "-m", "pixelrec_jax.programs.prepare", *arguments])


def test_command_line(place):
    where = [f"--interactions={place}/x.csv", f"--images={place}/images", f"--out={place}/out"]
    done = command(*where, "--min_interactions=4", "--store=resized", "--image_size=8")
    assert (done.returncode, done.stderr) == (0, "")
    assert "users                     1\n" in done.stdout
    assert "interactions              4   4.0 per user" in done.stdout
    assert "dropped 1 users, 3 interactions: users below 4 interactions" in done.stdout
    assert ImageStore(place / "out", size=8).num_items == 4
    again = command(*where)
    assert again.returncode == 2
    assert again.stderr.startswith("error: --out=")
    assert again.stderr.count("\n") == 1
