"""Item information: types, alignment with the items, and one line for what is wrong with a file."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.item_info import FILE, load
from pixelrec_jax.ingest import item_info
from pixelrec_jax.system.errors import UserError

ITEM_IDS = pl.Series(["b", "x", "007"])
CSV = """item_id,view_number,title,tag,description,season,code
007,5,1984,t,"two
lines, ""quoted\""",,007

b,7.0,"",,d,-3,8
z,1,elsewhere,t,,4,9
"""


@pytest.fixture
def dataset(tmp_path):
    """A dataset of the items ITEM_IDS whose manifest lists item information."""
    none = np.zeros(0, np.int64)
    manifest = {"counts": {"items": 3}, "files": {FILE: {}}}
    return Interactions(none, none, none, manifest, tmp_path)


def read(folder, content):
    path = folder / "info.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return item_info.read_item_info(path)


def test_rows_follow_the_items_and_columns_their_content(dataset):
    rows = read(dataset.directory, CSV)
    assert item_info.write_item_info(rows, ITEM_IDS, dataset.directory) == 2
    assert load(dataset).to_dict(as_series=False) == {
        "item_id": ["b", "x", "007"],
        "view_number": [7, None, 5],  # 7.0 in the file
        "title": [None, None, "1984"],  # a text, although a number
        "tag": [None, None, "t"],
        "description": ["d", None, 'two\nlines, "quoted"'],
        "season": [-3, None, None],
        "code": ["8", None, "007"],  # not a number: it would lose its zeros
    }


def test_a_dataset_without_item_information_has_none(dataset):
    assert load(dataclasses.replace(dataset, manifest={"files": {}})) is None


def test_numbers_too_large_for_integers_stay_text(dataset):
    rows = read(dataset.directory, "item_id,n,m\nb,99999999999999999999,999999999999999999\n")
    item_info.write_item_info(rows, ITEM_IDS, dataset.directory)
    assert load(dataset).row(0) == ("b", "99999999999999999999", 999999999999999999)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("id,title\nb,x\n", "has no column item_id; it has id, title"),
        ("item_id,title\nb,x\n,y\n", "has 1 rows without an item_id"),
        ("item_id,title\nb,x\nz,y\nb,z\n", "1 item_ids in more than one row, such as 'b' in 2;"),
        ("item_id,title\nb,x,y\n", "is not a valid CSV: found more fields"),
        ('item_id,title\nb,"x\nz,y\n', "is not a valid CSV"),
        (b"item_id,title\nb,\xff\n", "is not a valid CSV: invalid utf-8"),
    ],
)
def test_a_bad_file_is_refused_before_anything_is_written(tmp_path, content, message):
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_missing_foreign_or_damaged_are_told(dataset):
    folder = dataset.directory
    with pytest.raises(UserError, match=r"item information '.*no\.csv' does not exist"):
        item_info.read_item_info(folder / "no.csv")
    for content, example in (("item_id\nq\n", "'q'"), ("item_id\n", "''")):
        with pytest.raises(UserError, match=f"none of the 3 items .* 'b', --item_info .*{example}"):
            item_info.write_item_info(read(folder, content), ITEM_IDS, folder)
    assert not (folder / FILE).exists()
    item_info.write_item_info(read(folder, CSV), ITEM_IDS.head(2), folder)
    with pytest.raises(UserError, match=r"item_info.arrow.*2 rows for 3 items.*prepare.*again"):
        load(dataset)
    (folder / FILE).write_bytes(b"ARROW1")
    with pytest.raises(UserError, match=r"item_info.arrow.*cannot be read"):
        load(dataset)
