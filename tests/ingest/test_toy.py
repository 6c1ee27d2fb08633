"""The toy dataset: format, determinism, refusals, and a signal that pixels carry everywhere."""

import sys

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pixelrec_jax.ingest import toy
from pixelrec_jax.system.errors import UserError
from tests import subprocesses

SMALL = {"users": 60, "items": 120, "image_size": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("toy") / "set"
    toy.generate(out, seed=3, **SMALL)
    return out


@pytest.fixture(scope="module")
def world():
    """The default dataset without its images: attributes [items], and item indices per user."""
    catalog_rng, user_rng = np.random.default_rng(0).spawn(2)
    catalog = toy.draw_catalog(catalog_rng, 1200)
    rows = toy.draw_interactions(user_rng, catalog, 2500)
    rows = rows.with_columns(pl.col("item_id").str.slice(1).cast(int))
    return catalog, rows.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def train_counts(sequences, items):
    return np.bincount(np.concatenate([s.to_numpy()[:-2] for s in sequences]), minlength=items)


def test_the_seed_decides_every_byte(folder, tmp_path):
    toy.generate(tmp_path / "same", seed=3, **SMALL)
    toy.generate(tmp_path / "other", seed=4, **SMALL)
    same, other = contents(tmp_path / "same"), contents(tmp_path / "other")
    assert contents(folder) == same
    assert same.keys() == other.keys()
    assert all(same[path] != other[path] for path in same)


def test_format(folder):
    text = (folder / "interactions.csv").read_text()
    assert text.startswith("item_id,user_id,timestamp\n")
    rows = pl.read_csv(folder / "interactions.csv")
    assert rows.schema == {"item_id": pl.String, "user_id": pl.String, "timestamp": pl.Int64}
    items = pl.read_csv(folder / "items.csv")
    expected = ["item_id", "category", "palette", "paint", "shape", "texture", "release_time"]
    assert items.columns == expected
    assert set(rows["item_id"]) <= set(items["item_id"])
    assert {p.stem for p in (folder / "images").iterdir()} == set(items["item_id"])
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))
    assert len(set(contents(folder / "images").values())) == len(items)
    assert not list(folder.parent.glob(".*")), "a partial folder stayed"


def test_users_and_times(folder):
    rows = pl.read_csv(folder / "interactions.csv")
    assert rows["user_id"].n_unique() == SMALL["users"]
    length = rows.group_by("user_id").len()["len"]
    assert length.min() >= 6
    assert length.max() <= 40
    assert not rows.select("user_id", "item_id").is_duplicated().any()
    assert rows["timestamp"].is_sorted()
    assert rows["timestamp"].n_unique() == len(rows), "the order of tied times is undefined"
    released = rows.join(pl.read_csv(folder / "items.csv"), on="item_id")
    assert (released["timestamp"] >= released["release_time"]).all()


def test_cold_tail(world):
    catalog, sequences = world
    exposure = train_counts(sequences, len(catalog))[[s[-1] for s in sequences]]
    assert 0.10 <= (exposure <= 3).mean() <= 0.20
    assert (exposure == 0).mean() >= 0.02
    assert 12 <= np.mean([len(s) for s in sequences]) <= 15


def test_visual_taste_beats_popularity_and_reaches_the_cold_tail(world):
    catalog, sequences = world
    popularity = train_counts(sequences, len(catalog))
    similarity = np.zeros((len(catalog), len(catalog)))
    for kind, weight in toy.MATCH.items():
        value = catalog[kind].to_numpy()
        gap = abs(value[:, None] - value).astype(float)
        if kind == "palette":
            gap = np.minimum(gap, len(toy.PALETTES) - gap)
            similarity += weight * np.exp(-((gap / toy.PALETTE_WIDTH) ** 2) / 4)
        else:
            similarity += weight * (gap == 0)

    tie_break = 1e-6 * np.random.default_rng(0).random(len(catalog))

    def hits(score):  # HR@10 of each user, the history masked
        result = []
        for sequence in sequences:
            history, target = sequence.to_numpy()[:-1], sequence[-1]
            scores = score(history) + tie_break
            scores[history] = -np.inf
            result.append((scores > scores[target]).sum() < 10)
        return np.array(result)

    cold = popularity[[s[-1] for s in sequences]] <= 3
    popular = hits(lambda history: popularity)
    recent = hits(lambda history: similarity[history[-5:]].sum(0))
    distant = hits(lambda history: similarity[history[:5]].sum(0))
    assert 0.03 <= popular.mean() <= 0.06  # random: 10 / 1200
    assert recent.mean() >= 5 * popular.mean()
    assert recent[cold].mean() >= 0.3
    assert popular[cold].mean() == 0
    assert recent.mean() >= 1.3 * distant.mean(), "tastes do not drift"


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        toy.generate(tmp_path, seed=0, **SMALL)
    with pytest.raises(UserError, match="not an empty folder"):
        toy.generate(tmp_path / "kept", seed=0, **SMALL)
    assert contents(tmp_path) == {(tmp_path / "kept").relative_to(tmp_path): b"mine"}


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(toy, "draw_covers", fail)
    with pytest.raises(UserError, match="disk full"):
        toy.generate(tmp_path / "set", seed=0, **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("users", 0), ("items", 99), ("image_size", 15), ("image_size", 2048)],
)
def test_wrong_sizes_are_refused(tmp_path, name, value):
    with pytest.raises(UserError, match=f"--{name} is {value}; expected"):
        toy.generate(tmp_path / "set", **{"seed": 0, **SMALL, name: value})
    assert not list(tmp_path.iterdir())


def test_program(tmp_path):
    def call(*options):
        command = [sys.executable, "-m", "pixelrec_jax.programs.toy", *options]
        return subprocesses.run(command)

    sizes = [f"--{name}={value}" for name, value in SMALL.items()]
    assert call(f"--out={tmp_path / 'set'}", *sizes).returncode == 0
    assert (tmp_path / "set" / "interactions.csv").exists()
    again = call(f"--out={tmp_path / 'set'}", *sizes)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1
    assert "--out is missing" in call().stderr
