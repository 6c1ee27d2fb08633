"""Files that polars reads: a path names one file, whatever characters it has."""

import polars as pl
import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest.csv_file import open_csv
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.system import frames

READ = {
    "csv": lambda path: open_csv(path).scan(),
    "ipc": frames.scan_ipc,
    "parquet": frames.scan_parquet,
}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("name", ["own[2]", "own?", "own*", "**", "[a"])
def test_brackets_and_stars_are_characters_of_a_name(tmp_path, kind, name):
    for folder, value in ((name, "mine"), ("own2", "other")):
        (tmp_path / folder).mkdir()
        getattr(pl.DataFrame({"a": [value]}), f"write_{kind}")(tmp_path / folder / "x[1]*")
        pl.DataFrame({"a": ["third"]}).write_csv(tmp_path / folder / "x1")
    assert READ[kind](tmp_path / name / "x[1]*").collect().rows() == [("mine",)]
    assert READ[kind](tmp_path / "own2" / "x[1]*").collect().rows() == [("other",)]


@pytest.mark.parametrize("name", ["own[2]", "own?"])
def test_a_dataset_in_such_a_folder_has_its_own_ids(tmp_path, name):
    for folder in (name, "own2"):
        rows = "".join(f"{folder}{n % 3},{folder}u,{n}\n" for n in range(3))
        (tmp_path / "x.csv").write_text(f"item_id,user_id,timestamp\n{rows}")
        prepare(tmp_path / "x.csv", None, tmp_path / folder)
    dataset = load_interactions(tmp_path / name)
    assert dataset.item_ids().to_list() == [f"{name}{n}" for n in range(3)]
    assert dataset.user_ids().to_list() == [f"{name}u"]
