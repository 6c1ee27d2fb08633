"""The benchmark of pretrained features."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import neighbours
from pixelrec_jax.ingest.sources import open_source
from pixelrec_jax.system.errors import UserError
from tests import subprocesses
from tests.tiny import ROOT


def test_accuracy_counts_those_who_share_a_label():
    features = np.array([[1, 0], [2, 0.1], [0, 3], [0.1, 1], [-1, -1]])
    assert neighbours.accuracy(features, np.array(list("aabbc"))) == 1
    assert neighbours.accuracy(features, np.array(list("abbac"))) == 0
    assert neighbours.accuracy(features, np.array(list("aabab"))) == 0.4
    with pytest.raises(UserError, match="no two photos"):
        neighbours.accuracy(features, np.array(list("abcde")))


@pytest.fixture
def catalogue(tmp_path):
    """Reddish and bluish photos, labelled by colour; the last one is in the table only."""
    rng = np.random.default_rng(0)
    lines = ["item_id,colour"]
    for n in range(9):
        pixels = rng.integers(0, 60, (20, 20, 3)).astype(np.uint8)
        pixels[..., 2 * (n % 2)] += 150
        if n < 8:
            Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        lines.append(f"{n},{'blue' if n % 2 else 'red'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    return tmp_path


def test_a_catalogue_of_two_colours(catalogue):
    command = [sys.executable, "-m", "benchmarks.neighbours", "--item=vit_toy", "--label=colour"]
    command += [f"--images={catalogue}", f"--labels={catalogue / 'labels.csv'}"]
    done = subprocesses.run(command, cwd=ROOT, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["features"] for line in lines] == ["vit_toy, random", "16 x 16 pixels"]
    assert {line["photos"] for line in lines} == {8}
    assert lines[1]["accuracy"] == 1


class Pixels:
    """What an LMDB is: a source that gives pixels, not files."""

    def read(self, item_id):
        return np.full((5, 3, 3), ord(item_id), np.uint8)


def test_photos_of_an_lmdb_are_resized():
    photos = neighbours.read_photos(Pixels(), ["a", "b"], 2)
    assert photos.shape == (2, 2, 2, 3)
    assert np.unique(photos[0]) == ord("a")
    assert np.unique(photos[1]) == ord("b")


def test_wrong_input_is_one_line(catalogue):
    table, source = catalogue / "labels.csv", open_source(catalogue)
    with pytest.raises(UserError, match="no column 'type'"):
        neighbours.read_labels(table, source, column="type", limit=9)
    table.write_text("item_id,colour\nx,red\n")
    with pytest.raises(UserError, match="has a photo"):
        neighbours.read_labels(table, source, column="colour", limit=9)
    with pytest.raises(UserError, match="missing"):
        neighbours.read_labels(catalogue / "missing.csv", source, column="colour", limit=9)
    (catalogue / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="photo of '0': not a JPEG"):
        neighbours.read_photos(source, ["0"], 16)
