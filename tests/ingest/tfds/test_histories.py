"""Histories are in order of time, and of the file, whatever pieces they are read in."""

from pathlib import Path

import pytest

from pixelrec_jax.ingest.tfds import histories, pieces
from tests.ingest.tfds.given import CSV, HISTORIES, read


def check_histories(examples):
    found = {
        example["user_id"].decode(): (
            [item.decode() for item in example["item_ids"]],
            example["timestamps"].tolist(),
        )
        for example in examples
    }
    assert found == HISTORIES


def test_histories_are_in_order_of_time_and_ties_in_order_of_the_file(built):
    check_histories(read(built, "own_interactions", "users"))


@pytest.mark.parametrize("size", [*range(1, len(CSV) + 2), 10_000])
def test_pieces_of_any_size_give_the_same_histories(raw, size):
    path = str(raw / "x.csv")
    found = {}
    for start in reversed(list(pieces.starts(path, size))):  # Beam brings them in any order.
        for user_id, fragment in histories.fragments(start, path=path, size=size):
            found.setdefault(user_id, []).append(fragment)
    merged = dict(histories.merge(user_id, fragments) for user_id, fragments in found.items())
    assert {
        user_id: (example["item_ids"], example["timestamps"].tolist())
        for user_id, example in merged.items()
    } == HISTORIES


def test_many_ties_stay_in_order_of_the_file(tmp_path):
    path = str(tmp_path / "ties.csv")
    names = [f"i{number}" for number in range(500)]
    lines = [f"{name},u,{number % 2}\n" for number, name in enumerate(names)]
    Path(path).write_text("item_id,user_id,timestamp\n" + "".join(lines))
    fragments = [
        fragment
        for start in pieces.starts(path, 900)
        for _, fragment in histories.fragments(start, path=path, size=900)
    ]
    for _, example in (*histories.examples(path), histories.merge("u", fragments)):
        assert example["item_ids"] == names[::2] + names[1::2]
