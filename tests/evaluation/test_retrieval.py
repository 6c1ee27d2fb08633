"""Ranking against a dense NumPy ranking: ties, sizes that devices do not divide, seen items."""

import jax
import numpy as np
import pytest

from pixelrec_jax.data.types import PAD
from pixelrec_jax.evaluation.lists import UNRANKED, add_chunk
from pixelrec_jax.evaluation.metrics import ranking_metrics
from pixelrec_jax.users.encoder import dot_product
from pixelrec_jax.users.visrank import VisRank
from tests.evaluation.ranked import MESHES, dense_ranking, mesh_of, ranker


@pytest.fixture(params=MESHES)
def mesh(request):
    return mesh_of(request.param)


def _top_and_rank(score, query, table, seen, target, mesh, **options):
    """Returns ids, scores and ranks over a table [N, D]."""
    rank = ranker(score, mesh, num_items=len(table), **options)
    return rank(query, table, seen, target)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize("values", [3, 1000])
def test_equals_dense_ranking_also_under_ties(mesh, values, chunk):
    # Small integers make products exact, and with three values most scores tie.
    rng = np.random.default_rng(0)
    table = rng.integers(-values, values + 1, (103, 4)).astype(np.float32)
    query = rng.integers(-1, 2, (13, 4)).astype(np.float32)
    target = rng.integers(1, 103, 13).astype(np.int32)
    seen = rng.integers(0, 103, (13, 9)).astype(np.int32)
    seen = np.where(seen == target[:, None], 0, seen)
    ids, scores, rank = _top_and_rank(
        dot_product, query, table, seen, target, mesh, k=10, chunk=chunk
    )
    expected_ids, expected_rank = dense_ranking(query, table, seen, target, 10)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(rank, expected_rank)
    np.testing.assert_array_equal(scores, np.einsum("qkd,qd->qk", table[expected_ids], query))


def test_more_devices_than_items_and_k_of_the_whole_catalogue(mesh):
    table = np.arange(6, dtype=np.float32)[:, None]
    query, target = np.ones((2, 1), np.float32), np.array([1, 5], np.int32)
    seen = np.array([[0, 0], [4, 2]], np.int32)
    ids, scores, rank = _top_and_rank(dot_product, query, table, seen, target, mesh, k=5, chunk=2)
    np.testing.assert_array_equal(ids, [[5, 4, 3, 2, 1], [5, 3, 1, PAD, PAD]])
    np.testing.assert_array_equal(scores[1], [5, 3, 1, -np.inf, -np.inf])
    np.testing.assert_array_equal(rank, [5, 1])


@pytest.mark.parametrize("values", [2, 1000])
def test_the_best_of_a_chunk_are_found_without_sorting_it(values):
    """1000 columns are not whole groups; with two values, most of the best tie."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, values, (7, 1000)).astype(np.float32)
    scores[0, [3, 999]], scores[1, 5:] = np.nan, -np.inf
    ids = np.arange(50, 1050, dtype=np.int32)
    nothing = np.full((7, 9), -np.inf, np.float32), np.zeros((7, 9), np.int32)
    found, items = jax.jit(add_chunk)(*nothing, scores, ids)
    counted = np.where(np.isnan(scores), np.inf, scores)
    order = np.argsort(-counted, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(found, np.take_along_axis(counted, order, axis=1))
    real = ~np.isneginf(found)
    np.testing.assert_array_equal(items[real], ids[order][real])


@pytest.mark.parametrize("chunk", [2, 1000])
def test_scores_that_are_not_numbers_never_look_good(mesh, chunk):
    query, seen, target = np.ones((1, 2), np.float32), np.zeros((1, 1), np.int32), np.array([3])
    of_all = np.full((20, 2), np.nan, np.float32)
    of_the_others, of_the_target = np.ones((2, 20, 2), np.float32)
    of_the_others[[7, 19]] = np.nan
    of_the_target[3] = np.nan
    rank_by = ranker(dot_product, mesh, num_items=20, k=5, chunk=chunk)
    for table, least in ((of_all, 19), (of_the_others, 1 + 2 + 2), (of_the_target, 19)):
        ids, scores, rank = rank_by(query, table, seen, target)
        assert rank[0] >= least
        assert ((ids >= 0) & (ids < len(table))).all()
        assert np.isposinf(scores).sum() == min(5, np.isnan(table[1:]).any(axis=1).sum())


@pytest.mark.parametrize("chunk", [2, 1000])
def test_a_masked_target_has_no_rank_however_few_items_are_left(mesh, chunk):
    table = np.arange(20, dtype=np.float32)[:, None]
    query, target = np.ones((3, 1), np.float32), np.array([19, 19, 4])
    seen = np.array([[19, 4, *[0] * 17], range(1, 20), range(19, 0, -1)], np.int32)
    *_, rank = _top_and_rank(dot_product, query, table, seen, target, mesh, k=5, chunk=chunk)
    np.testing.assert_array_equal(rank, [UNRANKED] * 3)
    assert ranking_metrics(rank, ks=(1000,))["recall@1000"]["value"] == 0


@pytest.mark.parametrize("score", [dot_product, VisRank(1, 1, np.float32).score])
@pytest.mark.parametrize("chunk", [7, 32, 1000])
def test_a_rank_is_the_place_in_the_list_whatever_the_rounding(mesh, score, chunk):
    """Products of random numbers round differently in matrix products of different shapes."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(203, 48)).astype(np.float32)
    table[100:] = table[103:0:-1]  # pairs that tie, unless they round differently
    query = rng.normal(size=(202, 3 * 48 if score is not dot_product else 48)).astype(np.float32)
    target = np.arange(1, 203, dtype=np.int32)
    seen = rng.integers(0, 203, (202, 4)).astype(np.int32)
    seen = np.where(seen == target[:, None], 0, seen)
    ids, _, rank = _top_and_rank(score, query, table, seen, target, mesh, k=202, chunk=chunk)
    np.testing.assert_array_equal(ids[np.arange(202), rank - 1], target)
