"""The top lists of an evaluation as a file."""

from pathlib import Path

import numpy as np
import polars

from pixelrec_jax.data import item_info
from pixelrec_jax.data.interactions import Interactions
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
