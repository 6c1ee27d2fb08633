"""Ranking metrics from the rank of each user's one target, with 95 % intervals."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from pixelrec_jax.evaluation.result import Estimate, Metrics


def ranking_metrics(rank: Int[np.ndarray, " Q"], ks: Sequence[int]) -> Metrics:
    """Returns Recall@k and NDCG@k: the mean over users, and its normal 95 % interval.

    With one relevant item, recall is 1 if rank <= k and NDCG is 1 / log2(rank + 1) if rank <= k.

    Args:
      rank: places of the targets, 1 = first; without users the values are None.
      ks: cut-offs.
    """
    gain = 1 / np.log2(rank.astype(np.float64) + 1)
    metrics: Metrics = {}
    for k in ks:
        hit = rank <= k
        metrics[f"recall@{k}"] = _estimate(hit.astype(np.float64))
        metrics[f"ndcg@{k}"] = _estimate(np.where(hit, gain, 0.0))
    return metrics


def random_metrics(num_candidates: Int[np.ndarray, " Q"], ks: Sequence[int]) -> Metrics:
    """Returns the expected metrics of a uniformly random ranking: exact, so without interval.

    Args:
      num_candidates: how many items each user's target competes with, itself included; 0 for a
        target that no ranking can hit.
      ks: cut-offs.
    """
    metrics: Metrics = {}
    for k in ks:
        # Summed over the places that count: gains[n] is the sum over the first n.
        gains = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))])
        places, rivals = np.minimum(num_candidates, k), np.maximum(num_candidates, 1)
        metrics[f"recall@{k}"] = _expectation(places / rivals)
        metrics[f"ndcg@{k}"] = _expectation(gains[places] / rivals)
    return metrics


def _expectation(values: Float[np.ndarray, " Q"]) -> Estimate:
    return {"value": float(values.mean()) if len(values) else None, "low": None, "high": None}


def _estimate(values: Float[np.ndarray, " Q"]) -> Estimate:
    if not len(values):
        return {"value": None, "low": None, "high": None}
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / np.sqrt(len(values)) if len(values) > 1 else 1.0
    return {"value": mean, "low": max(mean - half, 0.0), "high": min(mean + half, 1.0)}
