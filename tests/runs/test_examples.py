"""Item information for readers: test_top_k.parquet and the examples of a report."""

import json
import shutil

import numpy as np
import polars as pl
import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.evaluation.evaluate import Ranking
from pixelrec_jax.evaluation.recommendations import write_test_top_k
from pixelrec_jax.runs import examples
from pixelrec_jax.runs.run_folder import CONFIG, storable
from pixelrec_jax.system import files
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.foreign import clean_line
from tests.described import describe
from tests.tiny import tiny_config


@pytest.fixture
def run(toy_dataset, tmp_path):
    """Returns a workdir with recommendations; every even user's target is on place 2."""

    def write(info=None):
        directory, workdir = toy_dataset, tmp_path / "run"
        if info:
            csv = tmp_path / "info.csv"
            csv.write_text(info(load_interactions(toy_dataset).item_ids()))
            directory = describe(toy_dataset, csv, tmp_path / "data")
        dataset = load_interactions(directory)
        user = np.arange(1, dataset.num_users, dtype=np.int32)
        target = dataset.items[dataset.offsets[2:] - 1]
        after, later = (((target + step) % (dataset.num_items - 1)) + 1 for step in (0, 1))
        top = np.stack([after, np.where(user % 2, later, target)], axis=1)
        scores = np.tile(np.float32([2.5, 1.25]), (len(user), 1))
        scores[user == 3, 1] = -np.inf  # no other item was left for user 3
        workdir.mkdir()
        config = tiny_config("user=mf,item=id,dataset=toy", directory)
        CONFIG.write(workdir / CONFIG.name, storable(config))
        write_test_top_k(workdir, dataset, Ranking(user, target, user, top, scores, user))
        return workdir, dataset

    return write


def titled(ids):
    """Titles for all items but the first; a tag and a title that a terminal would obey."""
    rows = (f'{item},"The\n[b]{item}[/b]\x1b[31m",tag{k}\n' for k, item in enumerate(ids) if k)
    return "item_id,title,tag\n" + "".join(rows)


def test_top_lists_have_titles_where_the_items_have(run):
    workdir, dataset = run(titled)
    table = pl.read_parquet(workdir / "test_top_k.parquet")
    assert table.columns == ["user_id", "rank", "item_id", "score", "title"]
    said = pl.read_parquet_metadata(workdir / "test_top_k.parquet")["content"]
    assert said.startswith("Test of a model: the 2 best unseen items of each user")
    assert table.height == 2 * (dataset.num_users - 1) - 1
    nameless = dataset.item_ids()[0]
    for row in table.iter_rows(named=True):
        expected = None if row["item_id"] == nameless else f"The\n[b]{row['item_id']}[/b]\x1b[31m"
        assert row["title"] == expected
    assert nameless in table["item_id"]


def test_examples_show_history_hits_and_the_choice(run):
    workdir, dataset = run(titled)
    text = examples.show(workdir, users=dataset.num_users, seed=0)  # more than there are
    assert "\x1b" not in text
    users, ids = dataset.user_ids(), dataset.item_ids()
    blocks = dict(block.split("\n", 1) for block in text.split("user ")[1:])
    assert list(blocks) == users.to_list()
    for user in range(1, dataset.num_users):
        lines = [line for line in blocks[users[user - 1]].splitlines()[3:] if line.strip()]
        rows = [line.replace("  hit", "").split() for line in lines]
        items = ids.gather(dataset.items[dataset.offsets[user] : dataset.offsets[user + 1]] - 1)
        assert [r[1] for r in rows if r[0] == "history"] == items.to_list()[:-1][-8:]
        assert [r[1] for r in rows if r[0] == "chosen"] == [items[-1]]
        assert [r[1] for r in rows if r[0] == "top"] == (["1"] if user == 3 else ["1", "2"])
        hits = [r for r, line in zip(rows, lines, strict=True) if "hit" in line]
        assert [r[:3] for r in hits] == ([] if user % 2 else [["top", "2", items[-1]]])
        for row, line in zip(rows, lines, strict=True):
            item = row[2 if row[0] == "top" else 1]
            assert (f"The [b]{item}[/b] [31m" in line) == (item != ids[0])


def test_which_users_are_shown_follows_from_the_seed(run):
    workdir, _ = run()
    one = examples.show(workdir, users=2, seed=1)
    assert one.count("user ") == 2
    assert "title" not in one
    assert one == examples.show(workdir, users=2, seed=1)
    assert one != examples.show(workdir, users=2, seed=2)


def test_what_is_missing_or_foreign_is_one_line(run):
    workdir, dataset = run(titled)  # on a copy of the dataset, which can be spoilt
    path = dataset.directory / "user_ids.arrow"
    pl.DataFrame({"user_id": [f"other{k}" for k in range(dataset.num_users - 1)]}).write_ipc(path)
    manifest = json.loads((dataset.directory / "manifest.json").read_text())
    manifest["files"]["user_ids.arrow"] = {
        "bytes": path.stat().st_size,
        "sha256": files.digest(path),
    }
    (dataset.directory / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="data is not the dataset of the run in"):
        examples.show(workdir, users=1, seed=0)
    shutil.rmtree(dataset.directory)
    with pytest.raises(UserError, match="data' is not a prepared dataset"):
        examples.show(workdir, users=1, seed=0)
    (workdir / "test_top_k.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"test_top_k\.parquet cannot be read .*--mode=eval"):
        examples.show(workdir, users=1, seed=0)
    (workdir / "test_top_k.parquet").unlink()
    with pytest.raises(UserError, match=r"test_top_k\.parquet cannot be read .*--mode=eval"):
        examples.show(workdir, users=1, seed=0)


def test_long_and_missing_texts_fit_into_a_cell():
    assert clean_line(None, width=5) == ""
    assert clean_line("a\tb\nc\u202ed", width=7) == "a b c d"
    assert clean_line("abcdef", width=5) == "abcd…"
