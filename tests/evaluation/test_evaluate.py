"""Ranking against a dense NumPy ranking: ties, sizes that devices do not divide, seen items."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pixelrec_jax.data.types import PAD
from pixelrec_jax.evaluation.chunks import best_of_chunk
from pixelrec_jax.evaluation.metrics import random_metrics, ranking_metrics
from pixelrec_jax.evaluation.retrieval import UNRANKED, retrieve
from pixelrec_jax.launch.dryrun.hlo import Program
from pixelrec_jax.parallel.sharding import CATALOG_SPEC, build_mesh, make_global_arrays, num_shards
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import state_template
from pixelrec_jax.users.encoder import dot_product
from pixelrec_jax.users.visrank import VisRank
from tests.steps import draw_state, place_state
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
    """Returns a table [N, D] row-sharded over the mesh and padded to whole shards."""
    shards = num_shards(mesh, CATALOG_SPEC)
    rows = -(-len(table) // shards)
    padded = np.full((shards * rows, table.shape[1]), 1e6, np.float32)  # would win if it counted
    padded[: len(table)] = table
    return make_global_arrays(padded.reshape(shards, rows, -1), mesh, CATALOG_SPEC)


def _dense(query, table, seen, target, k):
    """Returns the same results by sorting all items; ties: lower id first."""
    ids, ranks = [], []
    for vector, mask, goal in zip(query, seen, target, strict=True):
        scores = table @ vector
        scores[0] = -np.inf
        scores[mask] = -np.inf
        order = np.lexsort((np.arange(len(scores)), -scores))
        ids.append(order[:k])
        ranks.append(int(np.flatnonzero(order == goal)[0]) + 1)
    return np.array(ids), np.array(ranks)


def _top_and_rank(score, query, table, seen, target, mesh, *, k, chunk):
    """Returns ids, scores and ranks over a table [N, D], by one program as in an evaluation."""

    @jax.jit
    def ranked(catalog):
        sizes = {"num_items": len(table), "mesh": mesh, "chunk": chunk}
        return retrieve(score, query, catalog, seen, target, k, **sizes)

    return jax.device_get(ranked(_sharded(table, mesh)))


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
    expected_ids, expected_rank = _dense(query, table, seen, target, 10)
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
    found, items = jax.jit(best_of_chunk, static_argnums=2)(scores, ids, 9)
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
    for table, least in ((of_all, 19), (of_the_others, 1 + 2 + 2), (of_the_target, 19)):
        ids, scores, rank = _top_and_rank(
            dot_product, query, table, seen, target, mesh, k=5, chunk=chunk
        )
        assert rank[0] >= least
        assert ((ids >= 0) & (ids < len(table))).all()
        assert np.isposinf(scores).sum() == min(5, np.isnan(table[1:]).any(axis=1).sum())


@pytest.mark.parametrize("value", [np.nan, 1e30])
def test_a_model_whose_scores_are_not_finite_ends_in_one_line(toy_dataset, value):
    """Parameters of 1e30 are finite numbers, and their products are not."""
    config = tiny_config("user=mf,item=id,dataset=toy", toy_dataset)
    experiment = build_experiment(config, devices=jax.devices()[:1])
    state = draw_state(experiment)
    state.trainable["item_encoder"]["table"][5] = value
    state.trainable["user_encoder"]["table"][:] = value
    variables = place_state(state, experiment).variables
    with pytest.raises(UserError, match="the model's scores are not finite numbers; lower"):
        experiment.evaluator.rank(variables, "valid")


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


@pytest.mark.parametrize("words", ["user=sasrec,item=id", "user=visrank,item=features"])
def test_the_memory_of_a_ranking_is_that_of_a_chunk(words):
    """With eight times the items, temporaries grow by less than one row of scores."""
    config = tiny_config(f"{words},dataset=custom")
    config.mesh.update(MESHES["1 device"][1])
    config.eval.chunk = 64
    temporary = []
    for items in (1024, 8192):
        sequences = list(np.random.default_rng(0).integers(1, items, (64, 5)))
        experiment = build_experiment(
            config,
            devices=jax.devices()[:1],
            interactions=interactions_of(sequences, items),
            store=random_store(config.item, items),
        )
        _, rank = experiment.evaluator.lower(state_template(experiment).variables)
        temporary.append(rank.compile().memory_analysis().temp_size_in_bytes)
    assert temporary[1] - temporary[0] < 4 * (8192 - 1024)


@pytest.mark.parametrize("words", ["user=mf,item=id", "user=sasrec,item=id"])
def test_neither_catalogue_nor_tables_are_ever_gathered(words):
    config = tiny_config(f"{words},dataset=custom")
    config.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})
    config.eval.update({"batch_size": 16, "chunk": 300})
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
    """Three users: one has a popular target, one a cold target, and one a repeated target."""
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


def test_no_ranking_hits_a_masked_target_with_fewer_than_k_items_left():
    """Three of seven items are left; a rank among masked items would be within the first 10."""
    config = tiny_config("user=sasrec,item=id,dataset=toy")
    config.task.history_length = 2
    sequences = [np.array(s) for s in ([1, 2, 3, 4, 2], [1, 2, 3, 4, 4], [4, 3, 2, 1, 5])]
    experiment = build_experiment(config, interactions=interactions_of(sequences, 8))
    evaluator = experiment.evaluator
    state = place_state(draw_state(experiment), experiment)
    report = evaluator.report(evaluator.rank(state.variables, "test"), "test")
    assert report["repeated_targets"] == 2
    for ranker in ("model", "popularity", "random"):
        assert report[ranker]["all"]["recall@10"]["value"] == pytest.approx(1 / 3)


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
    """Sizes that no mesh divides, for items and users; the weights make products exact."""
    config = tiny_config(f"{words},dataset=custom")
    config.mesh.fsdp_min_size = 0
    config.eval.chunk = 5  # on eight devices one short of their rows
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 48, rng.integers(4, 12)) for _ in range(37)]
    rankings, start = [], None
    for count, axes in MESHES.values():
        config.mesh.update(axes)
        experiment = build_experiment(
            config,
            devices=jax.devices()[:count],
            interactions=interactions_of(sequences, 48),
            store=random_store(config.item, 48),
        )
        start = draw_state(experiment) if start is None else start
        evaluator, state = experiment.evaluator, place_state(start, experiment)
        variables = {
            **state.variables,
            # Multiples of 1/64 below 8: sums of their products are exact in float32.
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
