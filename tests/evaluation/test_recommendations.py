"""ranks.parquet: what a run gave each user, by original ids."""

from collections import Counter
from dataclasses import replace

import numpy as np
import polars

from pixelrec_jax.evaluation.recommendations import write_ranks
from pixelrec_jax.training.experiment import build_experiment
from tests.tiny import interactions_of, tiny_config


def test_ranks_of_targets_with_their_counts_and_null_for_repeats(tmp_path):
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(40)[: rng.integers(4, 12)] + 1 for _ in range(30)]
    repeats = range(0, 30, 7)
    for user in repeats:
        sequences[user][-1] = sequences[user][1]
    users = [f"user {n}" for n in rng.permutation(30)]
    items = [f"item {n}" for n in rng.permutation(40)]
    polars.DataFrame({"user_id": users}).write_ipc(tmp_path / "user_ids.arrow")
    polars.DataFrame({"item_id": items}).write_ipc(tmp_path / "item_ids.arrow")
    experiment = build_experiment(
        tiny_config("user=sasrec,item=id,dataset=toy"),
        interactions=replace(interactions_of(sequences, 41), directory=tmp_path),
    )
    ranking = experiment.evaluator.rank_by_popularity("test")
    write_ranks(tmp_path, experiment.split, ranking)
    said = polars.read_parquet_metadata(tmp_path / "ranks.parquet")["content"]
    assert said.startswith("Test of a model: the rank of the test target of each user")

    named = [[items[item - 1] for item in sequence] for sequence in sequences]
    training = Counter(item for sequence in named for item in sequence[:-2])
    total = Counter(item for sequence in named for item in sequence)
    rows = polars.read_parquet(tmp_path / "ranks.parquet").rows(named=True)
    assert len(rows) == 30
    for n, (row, user, sequence) in enumerate(zip(rows, users, named, strict=True)):
        left = set(items) - set(sequence[:-1])
        better = {item for item in left if training[item] > training[sequence[-1]]}
        tied = {item for item in left if training[item] == training[sequence[-1]]}
        rank = row.pop("rank")
        assert row == {
            "user_id": user,
            "item_id": sequence[-1],
            "num_candidates": 0 if n in repeats else len(left),
            "training_count": training[sequence[-1]],
            "total_count": total[sequence[-1]],
        }
        if n in repeats:
            assert rank is None
        else:
            assert len(better) < rank <= len(better) + len(tied)
