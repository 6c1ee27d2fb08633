"""Ids and images that are written a little differently: matched where only one can be meant."""

import inspect
import os
import sys
import unicodedata
import zipfile

import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import prepare
from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.ingest.sources.folder import FolderImages
from pixelrec_jax.ingest.sources.matching import MatchedImages
from pixelrec_jax.system.errors import UserError
from tests.ingest.pictures import picture


def folder_of(path, names):
    for seed, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(picture(seed)[0])
    return path


def zip_of(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for seed, name in enumerate(names):
            archive.writestr(name, picture(seed)[0])
    return path


def matched(tmp_path, names, ids):
    """Returns which picture each id has, by its place in `names`."""
    images = MatchedImages(open_source(folder_of(tmp_path / "images", names)), ids)
    contents = [picture(seed)[0] for seed in range(len(names))]
    return {item_id: contents.index(images.read(item_id)) for item_id in images.ids}, images


def prepared(tmp_path, ids, images):
    rows = "".join(f"{item_id},u,{time}\n" for time, item_id in enumerate(ids))
    (tmp_path / "x.csv").write_text(f"item_id,user_id,timestamp\n{rows}")
    return prepare.prepare(tmp_path / "x.csv", images, tmp_path / "out")


NFC, NFD = (unicodedata.normalize(form, "é1") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("names", "ids"),
    [
        (["1.jpg", "2.png", "3.JPG"], ["1.jpg", "2.png", "3.jpg"]),  # ids are names of files
        ([f"{NFD}.jpg", "a.png", "b.png"], [NFC, "a", "b"]),  # as macOS writes names
        ([f"{NFC}.jpg", "a.png", "b.png"], [f"{NFD}.jpg", "a", "b"]),
        (["010/0108.jpg", "010/0109.jpg", "011/deep/0110.jpg"], ["0108", "0109", "0110"]),  # H&M
    ],
)
def test_names_that_can_only_mean_one_are_matched(tmp_path, names, ids):
    assert matched(tmp_path, names, ids)[0] == {item_id: k for k, item_id in enumerate(ids)}
    prepared(tmp_path, ids, tmp_path / "images")
    assert load_interactions(tmp_path / "out").item_ids().to_list() == ids
    assert prepared(tmp_path / "images", ids, zip_of(tmp_path / "x.zip", names))["images"]["count"]


def test_folders_of_a_zip_may_have_backslashes(tmp_path):
    images = open_source(zip_of(tmp_path / "x.zip", ["img\\1.jpg", "img\\2.jpg"]))
    assert set(images.ids) == {"1", "2"}


def test_exactly_the_same_name_comes_first(tmp_path):
    names = ["1.jpg", "1.jpg.jpg", f"{NFD}.png", f"{NFC}.png"]
    ids = ["1", "1.jpg", NFC, NFD]
    assert matched(tmp_path, names, ids)[0] == {"1": 0, "1.jpg": 1, NFD: 2, NFC: 3}


def test_where_several_could_be_meant_nothing_is_matched(tmp_path):
    names, ids = ["1.jpg", "2.jpg", "3.jpg"], ["1", "1.jpg", "2.png", "2.jpg", "3"]
    found, images = matched(tmp_path, names, ids)
    assert found == {"1": 0, "3": 2}
    assert images.missing("2.png") == "missing; interactions name '2.png', images have '2'"


@pytest.mark.parametrize(
    ("ids", "names", "shown"),
    [
        (["108", "b"], ["0108.jpg", "b.png"], "name '108', images have '0108'"),
        (["0108", "b"], ["108.jpg", "b.png"], "name '0108', images have '108'"),
        (["1.0", "b"], ["1.jpg", "b.png"], "name '1.0', images have '1'"),
        (["AB", "b"], ["ab.jpg", "b.png"], "name 'AB', images have 'ab'"),
        (["ab", "b"], ["AB.jpg", "aB.jpg", "Ab.jpg", "b.png"], "images have 'AB' and 'Ab', ..."),
        (["x", "y"], ["1.jpg"], "name 'x', images have '1'"),  # nothing fits: an example
    ],
)
def test_other_differences_show_both_sides(tmp_path, ids, names, shown):
    with pytest.raises(UserError, match="have no usable image") as error:
        prepared(tmp_path, ids * 3, folder_of(tmp_path / "images", names))
    assert shown in str(error.value)
    assert shown in (tmp_path / "out.missing_images.csv").read_text()


def test_an_image_that_is_only_missing_is_said_to_be_missing(tmp_path):
    assert matched(tmp_path, ["1.jpg"], ["1", "2"])[1].missing("2") == "missing"


def test_an_item_in_two_folders_is_an_error_where_it_is_needed(tmp_path):
    images = folder_of(tmp_path / "images", ["a/1.jpg", "b/1.jpg", "b/2.jpg", "b/3.jpg"])
    with pytest.raises(UserError, match="one item twice; keep one"):
        prepared(tmp_path, ["2", "3", "1.jpg"], images)
    assert prepared(tmp_path, ["2", "3", "2"], images)["images"]["count"] == 2


def test_links_lead_to_files_of_the_folder_only(tmp_path):
    images = folder_of(tmp_path / "images", ["deep/1.jpg", "2.png", "4.png"])
    folder_of(tmp_path / "private", ["3.jpg", "4.jpg"])
    (images / "5.jpg").symlink_to(images / "deep" / "1.jpg")
    (images / "3.jpg").symlink_to(tmp_path / "private" / "3.jpg")
    (images / "4.jpg").symlink_to("../private/4.jpg")
    (images / "folder").symlink_to(tmp_path / "private")
    (images / "again").symlink_to(images)
    (tmp_path / "link").symlink_to(images)  # the folder itself may be given by a link
    for path in (images, tmp_path / "link"):
        found = open_source(path)
        assert set(found.ids) == {"1", "2", "4", "5"}
        assert found.read("4") == picture(2)[0]
    with pytest.raises(UserError, match=r"'3.jpg', a link that leads out of the folder"):
        prepared(tmp_path, ["1", "2", "3"], images)


def test_a_folder_of_any_depth_is_listed(tmp_path):
    limit = sys.getrecursionlimit()
    names = [f"{'d/' * 200}2.png", "1.png"]
    folder_of(tmp_path / "images", names)
    frames = len(inspect.stack(0))
    try:
        sys.setrecursionlimit(frames + 100)
        found = FolderImages(tmp_path / "images")
    finally:
        sys.setrecursionlimit(limit)
    assert set(found.ids) == {"1", "2"}


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    images = folder_of(tmp_path / "images", ["a/1.png", "b/2.png"])
    scan = os.scandir

    def refuse(path):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"images/b: Permission denied"):
        open_source(images)
