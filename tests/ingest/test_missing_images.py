"""Items without a usable image: a report, and what --missing makes of them."""

import os

import numpy as np
import pytest

from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.system.errors import UserError
from tests.prepared import HEADER, ROWS, draw, lines, run, sequences


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
    assert load_interactions(place / "out").item_ids().to_list() == ["c", "a"]
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
