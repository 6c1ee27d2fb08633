"""Official files are recognised, and a file that only looks like one is told apart."""

import pytest

from pixelrec_jax.ingest.official import OFFICIAL, recognise

COUNTS = dict(OFFICIAL["Pixel200K"].counts)
HASH = OFFICIAL["Pixel200K"].sha256
OTHER = "0" * 64


def test_counts_and_hash_tell_the_file_whatever_its_name():
    for name in ("Pixel200K.csv", "x.csv"):
        line = recognise(name, COUNTS, HASH)
        assert line == "official Pixel200K: its counts and its hash agree"
    line = recognise("x.csv", OFFICIAL["Pixel1M"].counts, OTHER)
    assert line == f"official Pixel1M: its counts agree; its hash is not known (SHA-256 {OTHER})"


def test_another_hash_is_reported_with_both():
    line = recognise("x.csv", COUNTS, OTHER)
    assert OTHER in line
    assert f"expected {HASH}" in line
    assert "official Pixel200K:" not in line


@pytest.mark.parametrize(
    ("file_name", "meant"),
    [
        ("Pixel200K.csv", "Pixel200K"),
        ("pixel200k_interaction.CSV", "Pixel200K"),
        ("PIXEL8M-interactions.csv", "Pixel8M"),
        ("Pixel1M (1).csv", "Pixel1M"),
        ("Pixelrec.csv", "PixelRec"),
        ("pixelrec50K_interactions.csv.gz", "PixelRec50K"),
    ],
)
def test_an_official_name_with_other_counts_is_reported(file_name, meant):
    counts = {**OFFICIAL[meant].counts, "items": 7}
    line = recognise(file_name, counts, OTHER)
    assert line.startswith(f"{file_name} is named like the official {meant} but has 7 items (exp")
    assert f"(expected {OFFICIAL[meant].counts['items']:,})" in line
    assert "users" not in line  # of what agrees it says nothing
    assert "\n" not in line


@pytest.mark.parametrize("file_name", ["interactions.csv", "mypixel200k.csv", "Pixel2M.csv", ""])
def test_other_files_are_no_matter(file_name):
    assert recognise(file_name, {**COUNTS, "users": 1}, OTHER) is None
