"""--items=all: pictures without interactions are items, and nothing else about the data changes."""

import unicodedata

import numpy as np
import polars as pl
import pytest

from pixelrec_jax.data import item_info
from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.ingest.summary import summary
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from tests.prepared import HEADER, ROWS, draw, lines, refused, run, sequences
from tests.tiny import tiny_config

COLD = {"z": 250, "b": 200}  # red of pictures that no interaction names


@pytest.fixture
def crowded(place):
    for item_id, red in COLD.items():
        draw(place / "images", item_id, (red, 0, 0))
    return place


def reds(place, count):
    return ImageStore(place / "out", size=4).load(np.arange(1, count + 1))[:, 0, 0, 0]


def test_pictures_without_interactions_come_after_the_items_of_interactions(crowded):
    (crowded / "info.csv").write_text("item_id,title\nz,last\na,first\n")
    manifest = run(crowded, items="all", item_info=crowded / "info.csv")
    stored = load_interactions(crowded / "out")
    assert stored.item_ids().to_list() == ["c", "a", "d", "e", "b", "z"]
    assert manifest["counts"] == {"users": 2, "items": 6, "interactions": 7}
    assert manifest["images"]["count"] == 6
    source = manifest["source"]
    assert (source["without_interactions"], source["with_item_info"]) == (2, 2)
    assert source["options"]["items"] == "all"
    assert "2 items have no interactions: --items=all" in summary(manifest, "out")
    assert sequences(crowded) == {"b": "adc", "a": "acde"}
    np.testing.assert_allclose(reds(crowded, 6), [60, 0, 120, 180, 200, 250], atol=4)
    assert item_info.load(stored)["title"].to_list() == [None, "first", None, None, None, "last"]


def test_by_default_only_items_of_interactions_are_in_the_catalogue(crowded):
    manifest = run(crowded)
    assert manifest["counts"]["items"] == 4
    assert "without_interactions" not in manifest["source"]
    columns = [(crowded / "out" / f"{name}.npy").read_bytes() for name in ("offsets", "items")]
    other = prepare(crowded / "x.csv", crowded / "images", crowded / "all", items="all")
    for name, content in zip(("offsets", "items"), columns, strict=True):
        assert (crowded / "all" / f"{name}.npy").read_bytes() == content
    assert manifest["files"]["item_ids.arrow"] != other["files"]["item_ids.arrow"]


def test_items_of_dropped_users_stay_by_their_pictures(crowded):
    (crowded / "x.csv").write_text(HEADER + "b,gone,1\nnowhere,gone,2\n" + lines(ROWS))
    manifest = run(crowded, items="all", min_interactions=4)
    assert load_interactions(crowded / "out").item_ids().to_list() == ["c", "d", "a", "e", "b", "z"]
    assert manifest["source"]["without_interactions"] == 2


def test_dropping_images_drops_those_without_interactions_as_well(crowded):
    (crowded / "images" / "z.jpg").write_bytes(b"no image")
    (crowded / "images" / "d.jpg").write_bytes(b"no image")
    (crowded / "x.csv").write_text(HEADER + lines([*ROWS, ("a", "b", 20)]))
    refused_with = r"2 of 6 items have no usable image .*--missing=drop"
    with pytest.raises(UserError, match=refused_with):
        run(crowded, items="all")
    run(crowded, items="all", missing="drop")
    assert load_interactions(crowded / "out").item_ids().to_list() == ["c", "a", "e", "b"]
    np.testing.assert_allclose(reds(crowded, 4), [60, 0, 180, 200], atol=4)


def test_a_picture_that_an_item_has_under_another_form_of_its_name_is_not_an_item(place):
    composed = "\u00e9"
    draw(place / "images", unicodedata.normalize("NFD", composed), (250, 0, 0))
    (place / "x.csv").write_text(HEADER + lines([*ROWS, (composed, "b", 20)]))
    manifest = run(place, items="all")
    assert load_interactions(place / "out").item_ids().to_list() == ["c", "a", "d", "e", composed]
    assert manifest["source"]["without_interactions"] == 0


def test_names_of_pictures_that_cannot_be_ids_and_no_pictures_are_refused(place):
    with pytest.raises(UserError, match="--items=all takes items from their images"):
        prepare(place / "x.csv", None, place / "out", items="all")
    draw(place / "images", "line\nend", (0, 0, 0))
    refused(place, r"--items=all: the image .*cannot be named so", items="all")
    refused(place, "--items=al is not an option; did you mean 'all'", items="al")
    run(place)


def test_items_without_interactions_are_negatives_and_ranked_but_have_no_popularity(crowded):
    rows = [("acde"[(u + t) % 4], f"u{u}", t) for u in range(8) for t in range(4)]
    (crowded / "x.csv").write_text(HEADER + lines(rows))
    for number in range(20):
        draw(crowded / "images", f"p{number}", (0, number, 0))
    run(crowded, items="all")
    config = tiny_config("user=mf,item=id,dataset=custom", crowded / "out")
    experiment = build_experiment(config)
    drawn = {int(item) for n in range(3) for item in np.unique(experiment.batches[n].items.id)}
    assert max(drawn) > 4
    counts = experiment.evaluator.training_counts
    assert counts.shape == (27,)
    assert counts[5:].sum() == 0
    ranking = experiment.evaluator.rank_by_popularity("test")
    assert (ranking.num_candidates == 26 - 3).all()
    assert pl.Series(ranking.target).is_between(1, 4).all()
