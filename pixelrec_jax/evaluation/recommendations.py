"""What an evaluation gave each user, as files: top lists and ranks of targets."""

from pathlib import Path

import numpy as np
import polars

from pixelrec_jax.data import item_info
from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.split import Split, training_counts
from pixelrec_jax.evaluation.evaluate import Ranking
from pixelrec_jax.system.files import replaced_file


def write_recommendations(workdir: Path, interactions: Interactions, ranking: Ranking) -> None:
    """Writes recommendations.parquet: user_id, rank (1 = best), item_id, score; original ids.

    Where the items have titles there is a column title, too.
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
    with replaced_file(workdir / "recommendations.parquet") as temporary:
        table.write_parquet(temporary)


def write_ranks(workdir: Path, split: Split, ranking: Ranking) -> None:
    """Writes ranks.parquet, a row per ranked user, from which metrics of any group follow.

    Its columns: user_id and item_id, the target's, original ids; rank (1 = best), null where the
    target is masked since the user had seen it; num_candidates, how many items the target competed
    with, itself included, 0 where it is masked; training_count and total_count, how often the
    target occurs in the training data and in all interactions.
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
        table.write_parquet(temporary)
