"""Ranking against a dense NumPy ranking: ties, sizes that no device count divides, masks."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pixelrec_jax.evaluation.metrics import random_metrics, ranking_metrics
from pixelrec_jax.evaluation.retrieval import retrieve
from pixelrec_jax.launch.dryrun.hlo import Program
from pixelrec_jax.parallel.sharding import CATALOG_SPEC, build_mesh, make_global_arrays, num_shards
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.state import state_template
from pixelrec_jax.users.encoder import dot_product
from tests.tiny import interactions_of, random_store, tiny_config

MESHES = {
    "1 device": (1, {"data": -1, "fsdp": 1, "tensor": 1}),
    "8 devices": (8, {"data": -1, "fsdp": 1, "tensor": 1}),
    "2 x 2 x 2": (8, {"data": 2, "fsdp": 2, "tensor": 2}),
}


@pytest.fixture(params=MESHES)
def mesh(request):
    devices, axes = MESHES[request.param]
    return build_mesh(ConfigDict(axes), jax.devices()[:devices])


def _sharded(table: np.ndarray, mesh) -> jax.Array:
    """Puts [N, D] row-sharded on the mesh, padded to whole shards."""
    shards = num_shards(mesh, CATALOG_SPEC)
    rows = -(-len(table) // shards)
    padded = np.full((shards * rows, table.shape[1]), 1e6, np.float32)  # would win if it counted
    padded[: len(table)] = table
    return make_global_arrays(padded.reshape(shards, rows, -1), mesh, CATALOG_SPEC)


def _dense(state, table, seen, target, k):
    """The same by sorting everything; ties by lower id."""
    ids, ranks = [], []
    for vector, mask, goal in zip(state, seen, target, strict=True):
        scores = table @ vector
        scores[0] = -np.inf
        scores[mask] = -np.inf
        order = np.lexsort((np.arange(len(scores)), -scores))
        ids.append(order[:k])
        ranks.append(int(np.flatnonzero(order == goal)[0]) + 1)
    return np.array(ids), np.array(ranks)


@pytest.mark.parametrize("values", [3, 1000])
def test_equals_dense_ranking_also_under_ties(mesh, values):
    # Small integers make products exact, and with three values most scores tie.
    rng = np.random.default_rng(0)
    table = rng.integers(-values, values + 1, (103, 4)).astype(np.float32)
    state = rng.integers(-1, 2, (13, 4)).astype(np.float32)
    target = rng.integers(1, 103, 13).astype(np.int32)
    seen = rng.integers(0, 103, (13, 9)).astype(np.int32)
    seen = np.where(seen == target[:, None], 0, seen)
    ids, scores, rank = jax.jit(
        lambda c: retrieve(dot_product, state, c, seen, target, k=10, num_items=103, mesh=mesh)
    )(_sharded(table, mesh))
    expected_ids, expected_rank = _dense(state, table, seen, target, 10)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(rank, expected_rank)
    np.testing.assert_array_equal(scores, np.einsum("qkd,qd->qk", table[expected_ids], state))


def test_more_devices_than_items_and_k_of_the_whole_catalogue(mesh):
    table = np.arange(6, dtype=np.float32)[:, None]
    state, target = np.ones((2, 1), np.float32), np.array([1, 5], np.int32)
    seen = np.zeros((2, 1), np.int32)
    ids, _, rank = retrieve(
        dot_product, state, _sharded(table, mesh), seen, target, k=5, num_items=6, mesh=mesh
    )
    np.testing.assert_array_equal(ids, [[5, 4, 3, 2, 1]] * 2)
    np.testing.assert_array_equal(rank, [5, 1])


def test_scores_that_are_not_numbers_never_look_good(mesh):
    table = np.full((20, 2), np.nan, np.float32)
    *_, rank = retrieve(
        dot_product,
        np.ones((1, 2), np.float32),
        _sharded(table, mesh),
        np.zeros((1, 1), np.int32),
        np.array([3], np.int32),
        k=5,
        num_items=20,
        mesh=mesh,
    )
    assert rank[0] >= 19


@pytest.mark.parametrize("words", ["user=mf,item=id", "user=sasrec,item=id"])
def test_neither_catalogue_nor_tables_are_ever_gathered(words):
    config = tiny_config(f"{words},dataset=custom")
    config.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})
    config.eval.batch_size = 16
    sequences = list(np.random.default_rng(0).integers(1, 8192, (2048, 5)))
    interactions = interactions_of(sequences, 8192)
    experiment = build_experiment(config, interactions=interactions)
    variables = state_template(experiment).variables
    for lowered in experiment.evaluator.lower(variables):
        sent = Program(lowered.compile().as_text()).collectives(chips=8)
        assert sent
        largest_part = 4 * 16 * 2048 / 8  # of the smaller table, that of users
        assert max(collective.bytes for collective in sent) < largest_part


def test_metrics_by_hand():
    metrics = ranking_metrics(np.array([1, 3, 6, 11]), ks=(5, 10))
    assert metrics["recall@5"]["value"] == 0.5
    assert metrics["recall@10"]["value"] == 0.75
    assert metrics["ndcg@5"]["value"] == pytest.approx((1 + 0.5) / 4)
    assert metrics["ndcg@10"]["value"] == pytest.approx((1 + 0.5 + 1 / np.log2(7)) / 4)
    # Sample standard deviation of (1, 1, 0, 0) is sqrt(1 / 3).
    half = 1.96 * np.sqrt(1 / 3) / 2
    assert metrics["recall@5"]["low"] == max(0, 0.5 - half)  # the interval stays within [0, 1]
    assert metrics["recall@5"]["high"] == min(1, 0.5 + half)
    many = ranking_metrics(np.tile([1, 3, 6, 11], 100), ks=(5,))["recall@5"]
    assert many["high"] - many["low"] == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(399))


def test_metrics_without_users():
    assert ranking_metrics(np.array([], int), ks=(5,))["recall@5"]["value"] is None
    assert random_metrics(np.array([], int), ks=(5,))["ndcg@5"]["value"] is None


def test_the_report_beside_its_baselines_by_hand():
    """Two users whose targets are popular and cold, and one whose target is a repeat."""
    config = tiny_config("user=sasrec,item=id,dataset=toy")
    config.eval.cold_threshold = 0
    popular = [[1, 2, 3, 4, 5, 20, 30]] * 8
    sequences = [np.array(s) for s in (*popular, [6, 7, 8, 9, 1, 2, 3], [1, 2, 3, 4, 5, 6, 2])]
    experiment = build_experiment(config, interactions=interactions_of(sequences, 41))
    evaluator = experiment.evaluator
    ranking = evaluator.rank_by_popularity("test")
    # In training, item 1 occurs ten times, items 2 to 5 nine times, 6 to 9 once.
    np.testing.assert_array_equal(ranking.target, [30] * 8 + [3, 2])
    assert ranking.rank[8] == 1  # 1 and 2 are masked; 4 and 5 tie with 3, which comes first
    np.testing.assert_array_equal(ranking.num_candidates, [40 - 6] * 8 + [40 - 6, 0])
    report = evaluator.report(ranking, "test")
    assert report["users"] == {"all": 10, "cold": 8}
    assert report["repeated_targets"] == 1
    expected = (9 * 5 / 34 + 0) / 10
    assert report["random"]["all"]["recall@5"]["value"] == pytest.approx(expected)
    assert report["random"]["cold"]["recall@5"]["value"] == pytest.approx(5 / 34)
    assert report["popularity"]["all"]["recall@5"]["value"] == pytest.approx(0.1)


def test_random_metrics_are_the_expectation():
    num_candidates = np.array([3, 20])
    metrics = random_metrics(num_candidates, ks=(5,))
    gains = 1 / np.log2(np.arange(1, 6) + 1)
    assert metrics["recall@5"]["value"] == pytest.approx((1 + 5 / 20) / 2)
    assert metrics["ndcg@5"]["value"] == pytest.approx((gains[:3].sum() / 3 + gains.sum() / 20) / 2)


@pytest.mark.parametrize(
    "words", ["user=mf,item=id", "user=sasrec,item=id", "user=fm,item=vit_toy"]
)
def test_a_whole_ranking_is_that_of_numpy_on_any_mesh(words):
    """Catalogue, tables and users of numbers that no mesh divides; weights make products exact."""
    config = tiny_config(f"{words},dataset=custom")
    config.mesh.fsdp_min_size = 0
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 48, rng.integers(4, 12)) for _ in range(37)]
    rankings = []
    for count, axes in MESHES.values():
        config.mesh.update(axes)
        experiment = build_experiment(
            config,
            devices=jax.devices()[:count],
            interactions=interactions_of(sequences, 48),
            store=random_store(config.item, 48),
        )
        evaluator, state = experiment.evaluator, init_state(experiment)
        variables = {
            **state.variables,
            # Multiples of 1/64 below 8, whose products sum exactly in float32, in any order.
            "params": jax.tree.map(lambda x: np.round(x * 640) / 64, state.params),
        }
        rankings.append(evaluator.rank(variables, "test"))
        catalog = np.asarray(evaluator.encode_catalog(variables))
        assert catalog.shape[0] == count
        catalog = catalog.reshape(-1, catalog.shape[-1])[:48]
    one = rankings[0]
    assert len(one.user) == 37
    for other in rankings[1:]:
        np.testing.assert_array_equal(other.rank, one.rank)
        np.testing.assert_array_equal(other.top_ids, one.top_ids)
    if words == "user=mf,item=id":
        table = np.asarray(variables["params"]["user_encoder"]["table"])
        seen = [sequence[:-1] for sequence in sequences]
        ids, ranks = _dense(table[one.user], catalog, seen, one.target, 10)
        kept = one.num_candidates > 0  # a target that was seen before is masked
        np.testing.assert_array_equal(one.rank[kept], ranks[kept])
        np.testing.assert_array_equal(one.top_ids, ids)
