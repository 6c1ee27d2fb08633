"""Lists and ranks do not change when bfloat16 scores choose what is scored in float32."""

import jax
import numpy as np
import pytest

from pixelrec_jax.data.types import PAD
from pixelrec_jax.evaluation import retrieval
from pixelrec_jax.evaluation.lists import UNRANKED
from pixelrec_jax.evaluation.screening import (
    error_bound,
    norms,
    num_rescored,
    rounded_product,
)
from pixelrec_jax.users.encoder import dot_product
from pixelrec_jax.users.mf import MF
from pixelrec_jax.users.visrank import VisRank
from tests.evaluation.ranked import dense_ranking, mesh_of, ranker

ITEMS, QUERIES, WIDTH, KEPT = 403, 24, 6, 24
MESHES = ["1 device", "2 x 2 x 2"]


def _screened(mesh: str):
    """Ranks with as many candidates as let some queries be decided by them and others not."""
    options = {"k": 10, "chunk": 128, "rescored": KEPT}
    return ranker(dot_product, mesh_of(mesh), num_items=ITEMS, **options)


@pytest.fixture(scope="module", params=MESHES)
def screened(request):
    return _screened(request.param)


def _near_ties():
    """Integers whose products are exact in float32, and items that bfloat16 cannot tell apart.

    Eight bits are left of eleven: items of a family differ by less. Some families are larger than
    the number of candidates.
    """
    rng = np.random.default_rng(0)
    families = rng.integers(-1100, 1100, (40, WIDTH))
    share = 1 / np.arange(1, 41)
    family = rng.choice(40, ITEMS, p=share / share.sum())
    table = families[family] + rng.integers(-1, 2, (ITEMS, WIDTH))
    query = rng.integers(-300, 300, (QUERIES, WIDTH))
    best = np.argsort(-(query @ table[1:].T), axis=1) + 1
    # Of every third query the target is among the first, of the others anywhere.
    place = np.where(np.arange(QUERIES) % 3, rng.integers(0, ITEMS - 1, QUERIES), 4)
    target = best[np.arange(QUERIES), place].astype(np.int32)
    seen = best[:, 1:12:3].astype(np.int32)
    seen = np.where(seen == target[:, None], PAD, seen)
    return query.astype(np.float32), table.astype(np.float32), seen, target


def test_near_ties_have_the_lists_and_ranks_of_float32(screened):
    query, table, seen, target = _near_ties()
    ids, scores, rank = screened(query, table, seen, target)
    expected_ids, expected_rank = dense_ranking(query, table, seen, target, 10)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(rank, expected_rank)
    np.testing.assert_array_equal(scores, np.einsum("qkd,qd->qk", table[expected_ids], query))
    rounded = [np.asarray(x.astype(jax.numpy.bfloat16), np.float32) for x in (query, table)]
    _, of_rounded = dense_ranking(*rounded, seen, target, 10)
    assert (of_rounded != expected_rank).sum() > QUERIES / 2  # bfloat16 alone ranks them wrong


def test_only_queries_with_more_candidates_than_fit_are_scored_again(monkeypatch):
    def nothing(_, target, k):
        return retrieval.Retrieved(
            ids=jax.numpy.zeros((len(target), k), np.int32),
            scores=jax.numpy.zeros((len(target), k)),
            rank=jax.numpy.full(len(target), -1, np.int32),
        )

    monkeypatch.setattr(retrieval, "_search", nothing)
    monkeypatch.setattr(retrieval, "_AGAIN", 1)
    query, table, seen, target = _near_ties()
    *_, rank = _screened("1 device")(query, table, seen, target)
    _, expected = dense_ranking(query, table, seen, target, 10)
    decided = rank != -1
    np.testing.assert_array_equal(rank[decided], expected[decided])
    assert decided[::3].sum() > QUERIES / 6
    assert (~decided).sum() > QUERIES / 6


@pytest.mark.numerical
def test_numbers_that_bfloat16_cannot_hold_are_ranked_as_by_float32(screened):
    """Scores that are NaN, an item of 3.4e38, tiny queries, zeros, and masked targets."""
    query, table, seen, target = _near_ties()
    table[[7, 300]], table[9] = np.nan, 0
    table[11], query[:, 0] = [3.4e38, 0, 0, 0, 0, 0], 0
    query[3], query[4] = 0, query[4] * 2.0**-100
    seen[np.isin(seen, [7, 300, 9])] = PAD
    target[:4] = 7, PAD, 9, 9
    seen[5:8, 0] = target[5:8]
    plain = ranker(dot_product, mesh_of("1 device"), num_items=ITEMS, k=10, chunk=128)
    expected = plain(query, table, seen, target)
    assert list(np.flatnonzero(expected.rank == UNRANKED)) == [1, 5, 6, 7]
    assert np.isposinf(expected.scores[:, :2]).all()
    jax.tree.map(np.testing.assert_array_equal, screened(query, table, seen, target), expected)


def test_a_rank_is_the_place_in_the_list_whatever_the_rounding(screened):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32)
    table[200:] = table[203:0:-1]  # pairs that tie
    query = rng.normal(size=(QUERIES, WIDTH)).astype(np.float32)
    seen = np.zeros((QUERIES, 4), np.int32)
    place = np.arange(QUERIES) % 10
    ids, *_ = screened(query, table, seen, np.full(QUERIES, PAD, np.int32))
    again, _, rank = screened(query, table, seen, ids[np.arange(QUERIES), place])
    np.testing.assert_array_equal(again, ids)
    np.testing.assert_array_equal(rank, place + 1)


@pytest.mark.numerical
def test_no_score_is_further_from_the_true_one_than_the_bound():
    """Of random vectors, of ones that all round in one direction by the most, and of tiny ones."""
    rng = np.random.default_rng(0)
    random = rng.normal(size=(2, 50, 512))
    halfway = np.full((2, 50, 512), 1 + 2.0**-8 + 2.0**-20)
    tiny = random * 2.0 ** rng.integers(-75, -55, (2, 50, 1))

    @jax.jit
    def product_and_bound(query, item):
        return rounded_product(query, item), error_bound(norms(query), norms(item), 512)

    for pair, least in ((random, 0.05), (halfway, 0.9), (tiny, 0)):
        query, item = pair.astype(np.float32)
        product, bound = product_and_bound(query, item)
        error = np.abs(product - query.astype(np.float64) @ item.T.astype(np.float64))
        assert (error <= bound).all()
        assert (error / bound).max() > least


def test_only_dot_products_on_accelerators_and_many_rows_are_screened():
    product, other = MF(1, 1, np.float32), VisRank(1, 1, np.float32)
    assert num_rescored(product, "gpu", 96_000) > 0
    assert num_rescored(product, "tpu", 96_000) > 0
    assert num_rescored(product, "cpu", 96_000) == 0
    assert num_rescored(product, "gpu", 500) == 0
    assert num_rescored(other, "gpu", 96_000) == 0
