"""Files with the result of an evaluation for each user: top lists and ranks of targets."""

from pathlib import Path

import numpy as np
import polars

from pixelrec_jax.data import item_info
from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.split import Split, training_counts
from pixelrec_jax.evaluation.evaluate import Ranking
from pixelrec_jax.system.files import replaced_file

# Both files carry a line on what they are, as metadata of Parquet.
_TOP_K = (
    "Test of a model: the {k} best unseen items of each user, given only the history before the "
    "test target; not lists for use, which would know the whole history. score: as the model gives "
    "it, larger is better, not a probability."
)
_RANKS = (
    "Test of a model: the rank of the test target of each user among num_candidates items, 1 is "
    "best, null if the user had seen the target before. Counts are of interactions."
)


def write_test_top_k(workdir: Path, interactions: Interactions, ranking: Ranking) -> None:
    """Writes test_top_k.parquet, with a row for each place in a user's top list of the test.

    Its columns are user_id and item_id, both original; rank, 1 = best; score; and title, if the
    dataset has titles of items. The metadata of the file says what it is.
    """
    user_ids, item_ids = interactions.user_ids(), interactions.item_ids()
    users, k = ranking.top_ids.shape
    top = ranking.top_ids.reshape(-1) - 1
    columns = {
        "user_id": user_ids.gather(np.repeat(ranking.user - 1, k)),
        "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), users),
        "item_id": item_ids.gather(top),
        "score": ranking.top_scores.reshape(-1),
    }
    info = item_info.load(interactions)
    if info is not None and "title" in info.columns:
        columns["title"] = info["title"].gather(top)
    table = polars.DataFrame(columns)
    table = table.filter(polars.col("score").is_finite())  # a user may have fewer than k items left
    with replaced_file(workdir / "test_top_k.parquet") as temporary:
        table.write_parquet(temporary, metadata={"content": _TOP_K.format(k=k)})


def write_ranks(workdir: Path, split: Split, ranking: Ranking) -> None:
    """Writes ranks.parquet, with a row per ranked user; metrics of any group follow from it.

    A target is masked if the user had seen it before. The columns are:
      user_id, item_id: original ids of the user and of the target.
      rank: 1 = best; null for a masked target.
      num_candidates: how many items the target competed with, itself included; 0 if it is masked.
      training_count, total_count: how often the target occurs in the training data, and in all
        interactions.
    """
    interactions, target = split.interactions, ranking.target
    total = np.bincount(interactions.items, minlength=interactions.num_items)
    table = polars.DataFrame(
        {
            "user_id": interactions.user_ids().gather(ranking.user - 1),
            "item_id": interactions.item_ids().gather(target - 1),
            "rank": ranking.rank,
            "num_candidates": ranking.num_candidates,
            "training_count": training_counts(split)[target],
            "total_count": total[target],
        }
    )
    masked = polars.col("num_candidates") == 0
    table = table.with_columns(rank=polars.when(~masked).then("rank"))
    with replaced_file(workdir / "ranks.parquet") as temporary:
        table.write_parquet(temporary, metadata={"content": _RANKS})
