"""Preparation of a dataset: ids, order, filters, refusals, and that nothing half-written stays."""

import errno
import hashlib
import json
import os
import pickle
import shutil
import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pixelrec_jax.data import interactions
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.ingest import columns, image_shards, selection
from pixelrec_jax.ingest import prepare as program
from pixelrec_jax.system.errors import UserError
from tests import subprocesses

HEADER = "item_id,user_id,timestamp\n"
# User b appears first; a has two ties at 5, written c before d; item d appears third.
ROWS = (
    ("c", "b", 9),
    ("a", "b", 3),
    ("d", "b", 3),
    ("c", "a", 5),
    ("d", "a", 5),
    ("a", "a", 1),
    ("e", "a", 5),
)


def lines(rows):
    return "".join(f"{item},{user},{time}\n" for item, user, time in rows)


def draw(folder, item_id, color, suffix=".jpg"):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (6, 4), color).save(folder / f"{item_id}{suffix}")


@pytest.fixture
def place(tmp_path):
    """A folder with x.csv (ROWS) and images/ of the items a, c, d, e."""
    (tmp_path / "x.csv").write_text(HEADER + lines(ROWS))
    for number, item_id in enumerate("acde"):
        draw(tmp_path / "images", item_id, (60 * number, 0, 0))
    return tmp_path


def run(place, **options):
    return program.prepare(place / "x.csv", place / "images", place / "out", **options)


def refused(place, match, **options):
    """Asserts one line of error that matches, and that the folder is left as it was."""
    before = sorted(path.name for path in place.iterdir())
    with pytest.raises(UserError, match=match) as caught:
        run(place, **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in place.iterdir()) == before


def sequences(place):
    """User id -> item ids in order, through `load`."""
    stored = interactions.load(place / "out")
    item_ids, user_ids = stored.item_ids(), stored.user_ids()
    return {
        user_ids[user - 1]: "".join(
            item_ids[int(item) - 1]
            for item in stored.items[stored.offsets[user] : stored.offsets[user + 1]]
        )
        for user in range(1, stored.num_users)
    }


def test_ids_and_order_by_hand(place):
    manifest = run(place)
    stored = interactions.load(place / "out")
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
    assert isinstance(stored.items, np.memmap)
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


@pytest.mark.parametrize(
    ("first", "last", "unit"),
    [
        (1_600_000_000, 1_700_000_000, "seconds"),
        (1_600_000_000_000, 1_700_000_000_000, "milliseconds"),
        (1_600_000_000 * 10**6, 1_700_000_000 * 10**6, "microseconds"),
        (1_600_000_000 * 10**9, 1_700_000_000 * 10**9, "nanoseconds"),
        (1_600_000_000, 1_600_000_000_000, "other"),  # not all in one unit
        (0, 1_700_000_000, "other"),
        (20_200_101, 20_231_231, "other"),
        (202_001_010_000, 202_312_312_359, "other"),
        (-(2**63), 2**63 - 1, "other"),
    ],
)
def test_times_since_1970_are_recognised(place, first, last, unit):
    (place / "x.csv").write_text(HEADER + lines(("c", "a", time) for time in (first, last, first)))
    manifest = run(place)
    assert manifest["timestamp_unit"] == unit
    stored = interactions.load(place / "out")
    assert stored.timestamps.tolist() == [first, first, last]


@pytest.mark.parametrize("unit", ["days", "other", "order"])
def test_the_manifest_names_the_unit_that_was_given(place, unit):
    (place / "x.csv").write_text(HEADER + lines(("c", "a", 1_600_000_000 + n) for n in range(3)))
    manifest = run(place, timestamp_unit=unit)
    assert manifest["timestamp_unit"] == unit
    assert f"timestamps    {unit:>13}\n" in program.summary(manifest, "out") + "\n"
    assert interactions.load(place / "out").manifest["timestamp_unit"] == unit


def test_an_unknown_unit_is_refused(place):
    refused(
        place,
        "--timestamp_unit=secnods is not an option; did you mean 'seconds'",
        timestamp_unit="secnods",
    )


def test_a_manifest_without_a_unit_is_damaged(place):
    manifest = run(place)
    del manifest["timestamp_unit"]
    (place / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"damaged: manifest.json has no timestamp_unit"):
        interactions.load(place / "out")


def test_record_i_is_item_i_plus_one(place):
    run(place)
    reds = ImageStore(place / "out", size=4).load(np.arange(6))[:, 0, 0, 0]
    np.testing.assert_allclose(reds, [0, 60, 0, 120, 180, 0], atol=3)  # pad, c, a, d, e, none


def test_columns_go_by_name_ids_are_text_and_files_may_be_untidy(place):
    rows = [f"x,{time},{user},{item}" for item, user, time in ROWS]
    text = "\ufeffnote,timestamp,user_id,item_id\r\n" + "\r\n".join(rows) + "\r\n\r\n"
    (place / "x.csv").write_text(text.replace(",a,", ",007,"), encoding="utf-8", newline="")
    run(place)
    assert sequences(place) == {"b": "adc", "007": "acde"}


def test_sorting_in_blocks_equals_sorting_at_once(place, monkeypatch):
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 20, 400), rng.integers(0, 4, 400), rng.integers(0, 9, 400)
    rows = [("acde"[i], f"u{u}", t) for i, u, t in zip(items, users, times, strict=True)]
    (place / "x.csv").write_text(HEADER + lines(rows))
    monkeypatch.setattr(columns, "_ROWS_PER_BLOCK", 50)
    blocks, by_block = [], columns._by_block

    def counted(*arguments):
        blocks.append([*by_block(*arguments)])
        return iter(blocks[-1])

    monkeypatch.setattr(columns, "_by_block", counted)
    expected, earliest = {}, {}
    for item, user, _ in sorted(rows, key=lambda row: row[2]):  # Python's sort is stable.
        expected[user] = expected.get(user, "") + item
    for user, sequence in expected.items():
        earliest[user] = "".join(dict.fromkeys(sequence))
    manifest = run(place)
    assert all(len(found) > 5 for found in blocks)
    assert sequences(place) == expected
    repeated = sum(map(len, expected.values())) - sum(map(len, earliest.values()))
    assert manifest["source"]["repeats"] == repeated
    table = columns.read_csv(place / "x.csv")
    assert columns.first_of_repeats(table).sum() == sum(map(len, earliest.values()))


def test_rare_users_are_dropped_and_ids_follow_the_kept_rows(place):
    manifest = run(place, min_interactions=4)
    # Without user b, the first rows are a's: c, d, a, e.
    assert interactions.load(place / "out").item_ids().to_list() == ["c", "d", "a", "e"]
    assert sequences(place) == {"a": "acde"}
    lost = {"users": 1, "items": 0, "interactions": 3}
    assert manifest["source"]["dropped"] == {"min_interactions": lost}


def test_images_of_dropped_users_are_not_needed(place):
    (place / "x.csv").write_text(HEADER + "gone,z,1\n" + lines(ROWS))
    manifest = run(place, min_interactions=3)
    assert manifest["source"]["dropped"]["min_interactions"]["items"] == 1


@pytest.mark.parametrize(("repeats", "of_b"), [("keep", "adaca"), ("first", "adc")])
def test_repeats(place, repeats, of_b):
    # b meets a again at 3 (a tie: the row before it stays) and at 10.
    rows = [*ROWS, ("a", "b", 3), ("a", "b", 10)]
    (place / "x.csv").write_text(HEADER + lines(rows))
    manifest = run(place, repeats=repeats)
    assert sequences(place)["b"] == of_b
    assert manifest["source"]["repeats"] == 2
    lost = {"repeats": {"users": 0, "items": 0, "interactions": 2}} if repeats == "first" else {}
    assert manifest["source"]["dropped"] == lost


def test_repeats_go_before_the_count_of_interactions(place):
    rows = [*ROWS, ("a", "r", 1), ("a", "r", 2), ("a", "r", 3)]
    (place / "x.csv").write_text(HEADER + lines(rows))
    run(place, repeats="first", min_interactions=3)
    assert "r" not in sequences(place)


def test_missing_and_corrupt_images_stop_the_run_with_a_report(place):
    (place / "images" / "c.jpg").unlink()
    whole = (place / "images" / "e.jpg").read_bytes()
    (place / "images" / "e.jpg").write_bytes(whole[:-40])
    with pytest.raises(UserError) as caught:
        run(place)
    message = str(caught.value)
    report = place / "out.missing_images.csv"
    assert message.startswith("2 of 4 items have no usable image (1 missing, 1 undecodable): c: ")
    assert "e: cannot be decoded" in message
    assert f"{report}; add the images, or use --missing=drop" in message
    assert "\n" not in message
    assert report.read_text().splitlines()[:2] == ["item_id,reason", "c,missing"]
    assert sorted(os.listdir(place)) == [
        "images",
        "out.missing_images.csv",
        "out.partial",
        "x.csv",
    ]
    draw(place / "images", "c", (0, 0, 0))
    (place / "images" / "e.jpg").write_bytes(whole)
    run(place)
    assert sorted(os.listdir(place)) == ["images", "out", "x.csv"]


def test_drop_removes_items_then_applies_the_user_filter_again(place):
    (place / "images" / "e.jpg").write_bytes(b"no image")
    (place / "images" / "d.jpg").unlink()
    (place / "x.csv").write_text(HEADER + lines([*ROWS, ("a", "a", 7), ("c", "a", 8)]))
    manifest = run(place, missing="drop", min_interactions=3)
    # b keeps two of three and goes; then c comes before a in the file.
    assert sequences(place) == {"a": "acac"}
    assert interactions.load(place / "out").item_ids().to_list() == ["c", "a"]
    assert manifest["source"]["dropped"] == {
        "min_interactions": {"users": 1, "items": 0, "interactions": 2},
        "missing_images": {"users": 0, "items": 2, "interactions": 3},
    }
    reds = ImageStore(place / "out", size=4).load(np.arange(1, 3))[:, 0, 0, 0]
    np.testing.assert_allclose(reds, [60, 0], atol=3)
    report = (place / "out" / "missing_images.csv").read_text().splitlines()
    assert report[1:] == ["d,missing", "e,not a JPEG, PNG or WEBP image".replace("e,", 'e,"') + '"']


def test_drop_that_leaves_a_user_too_short_or_nothing_is_an_error(place):
    (place / "images" / "d.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 users have fewer than 3 .*'b' has 2.*--min_inter"):
        run(place, missing="drop")
    for item_id in "ace":
        (place / "images" / f"{item_id}.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="all 4 items are without an image"):
        run(place, missing="drop")
    assert not (place / "out").exists()


@pytest.mark.parametrize("store", ["original", "resized"])
def test_placeholder_is_grey_and_on_record(place, store):
    (place / "images" / "d.jpg").unlink()
    manifest = run(place, missing="placeholder", store=store)
    assert manifest["images"]["placeholders"] == ["d"]
    assert manifest["counts"]["items"] == 4
    assert (ImageStore(place / "out", size=224).load(np.array([3])) == 128).all()
    assert (place / "out" / "missing_images.csv").read_text() == "item_id,reason\nd,missing\n"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        (HEADER, "has a header but no interactions"),
        ("item,user_id,time\na,b,1\n", "has no column item_id, timestamp; it has item, user_id, t"),
        (HEADER + "a,b,1\n\nc,b,1.5\nc,b,x\n", r"line 4: timestamp '1\.5' is not an integer"),
        (HEADER + "a,b,1\na,b,\n", "line 3: timestamp '' is not an integer"),
        (HEADER + "a,b,99999999999999999999\n", "line 2: timestamp '9+' is not an integer"),
        (HEADER + "a,b,1\n,b,2\n", "line 3: item_id is empty"),
        (HEADER + 'a,b,1\nc,"",2\n', "line 3: user_id is empty"),
        (HEADER + "a,b,1,2\n", "is not a valid CSV: found more fields"),
        (HEADER.encode() + b"a,\xff,1\n", "is not a valid CSV: invalid utf-8"),
        (HEADER + "a,b,1\nc,b,2\n" + lines(ROWS[3:]), "1 of 2 users .*'b' has 2.*interactions=3"),
    ],
)
def test_bad_csv(place, text, match):
    (place / "x.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(place, match)


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
    assert interactions.load(out).num_users == 3


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

    monkeypatch.setattr(columns, "write_columns", fail)
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


def test_a_star_in_the_name_of_a_file_is_a_star(place):
    (place / "x.csv").rename(place / "x*[1].csv")
    (place / "x2.csv").write_text(HEADER + "other,rows,1\n")
    table = columns.read_csv(place / "x*[1].csv")
    assert table.counts == {"users": 2, "items": 4, "interactions": 7}


def test_interrupted_while_decoding_leaves_nothing_that_is_not_done(place, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_shards, "_record", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(place)
    assert sorted(os.listdir(place)) == ["images", "x.csv"]


def test_load_refuses_what_is_not_whole(place):
    with pytest.raises(UserError, match=r"is not a prepared dataset.*run pixelrec prepare"):
        interactions.load(place)
    run(place)
    out = place / "out"
    items = (out / "items.npy").read_bytes()
    (out / "items.npy").write_bytes(items[:-4])
    with pytest.raises(UserError, match=r"damaged: items.npy has 152 bytes, .* says 156 bytes"):
        interactions.load(out)
    (out / "items.npy").unlink()
    with pytest.raises(UserError, match=r"damaged: items.npy is missing"):
        interactions.load(out)
    (out / "items.npy").write_bytes(items)
    manifest = json.loads((out / "manifest.json").read_text())
    changed = {**manifest, "counts": {**manifest["counts"], "users": 5}}
    (out / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"offsets.npy holds int64\[4\], .*says int64\[7\]"):
        interactions.load(out)
    (out / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 1}))
    with pytest.raises(UserError, match="has schema version 1, but this program reads version 3"):
        interactions.load(out)
    (out / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest.json cannot be read"):
        interactions.load(out)


def test_a_dataset_without_images_is_for_ids(place):
    manifest = program.prepare(place / "x.csv", None, place / "out")
    assert manifest["images"] is None
    assert interactions.load(place / "out").num_items == 5
    with pytest.raises(UserError, match=r"was prepared without images; .*--images=DIR"):
        ImageStore(place / "out", size=8)


def test_two_preparations_do_not_write_the_same_folder(place, monkeypatch):
    def second(*_):
        with pytest.raises(UserError, match="another process is preparing --out="):
            run(place)
        raise KeyboardInterrupt

    monkeypatch.setattr(columns, "write_columns", second)
    with pytest.raises(KeyboardInterrupt):
        run(place)


@pytest.fixture
def many(place):
    """Users u0..u39, of whom u<n> has 3 + n % 4 interactions."""
    rows = [("acde"[t % 4], f"u{u}", t) for u in range(40) for t in range(3 + u % 4)]
    (place / "x.csv").write_text(HEADER + lines(rows))
    return place


def users(place, **options):
    manifest = program.prepare(place / "x.csv", None, place / "out", **options)
    ids = set(interactions.load(place / "out").user_ids())
    shutil.rmtree(place / "out")
    return ids, manifest


def test_samples_are_random_and_nested_and_leave_out_rare_users(many, monkeypatch):
    small, manifest = users(many, sample="5", min_interactions=5)
    large, _ = users(many, sample="12", min_interactions=5)
    assert (len(small), len(large)) == (5, 12)
    assert small < large
    assert all(int(user[1:]) % 4 >= 2 for user in large)
    assert users(many, sample="5", min_interactions=5)[0] == small
    assert users(many, sample="5", min_interactions=5, seed=1)[0] != small
    assert manifest["source"]["dropped"]["sample"]["users"] == 15
    every, _ = users(many, sample="pixel8m")
    assert every == {f"u{u}" for u in range(40) if u % 4 >= 2}
    monkeypatch.setitem(selection.NAMED, "pixel200k", selection.Sample(5, 5))
    assert users(many, sample="Pixel200K")[0] == small


@pytest.mark.parametrize(
    ("sample", "match"),
    [
        ("41", "--sample asks for 41 users, but there are 40"),
        ("0", "--sample=0 is not a positive number"),
        ("9" * 5000, "--sample=9{40} is not a positive number"),
        ("pixel20k", "--sample=pixel20k is not .*did you mean 'pixel200k'"),
        ("pixel1m", "--sample asks for 1,000,000 users, but there are 20"),
    ],
)
def test_bad_samples(many, sample, match):
    refused(many, match, sample=sample)


@pytest.mark.parametrize("name", ["offsets", "items", "timestamps", "image_rows"])
def test_load_compares_what_cannot_be_checked_otherwise(place, name):
    run(place)
    path = place / "out" / f"{name}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged: {name}.npy has other content"):
        interactions.load(place / "out")


def test_interactions_travel_to_other_processes_as_a_path(place):
    run(place)
    stored = interactions.load(place / "out")
    pickled = pickle.dumps(stored)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    np.testing.assert_array_equal(again.items, stored.items)


def test_ids_are_readable_arrow_files(place):
    run(place)
    frame = pl.read_ipc(place / "out" / "user_ids.arrow")
    assert frame.to_dict(as_series=False) == {"user_id": ["b", "a"]}


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
