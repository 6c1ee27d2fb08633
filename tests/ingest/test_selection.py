"""Which users and interactions are kept: repeats, rare users, samples."""

import shutil

import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import prepare as program
from pixelrec_jax.ingest import selection
from tests.prepared import HEADER, ROWS, lines, refused, run, sequences


def test_rare_users_are_dropped_and_ids_follow_the_kept_rows(place):
    manifest = run(place, min_interactions=4)
    # Without user b, the first rows are a's: c, d, a, e.
    assert load_interactions(place / "out").item_ids().to_list() == ["c", "d", "a", "e"]
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


@pytest.fixture
def many(place):
    """Users u0..u39, of whom u<n> has 3 + n % 4 interactions."""
    rows = [("acde"[t % 4], f"u{u}", t) for u in range(40) for t in range(3 + u % 4)]
    (place / "x.csv").write_text(HEADER + lines(rows))
    return place


def users(place, **options):
    manifest = program.prepare(place / "x.csv", None, place / "out", **options)
    ids = set(load_interactions(place / "out").user_ids())
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
