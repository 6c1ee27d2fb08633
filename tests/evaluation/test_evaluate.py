"""Evaluations: what is never gathered, metrics by hand, and whole rankings on any mesh."""

import jax
import numpy as np
import pytest

from pixelrec_jax.evaluation.metrics import random_metrics, ranking_metrics
from pixelrec_jax.launch.dryrun.hlo import Program
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import state_template
from tests.evaluation.ranked import MESHES, dense_ranking
from tests.steps import draw_state, place_state
from tests.tiny import interactions_of, random_store, tiny_config


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
        ids, ranks = dense_ranking(table[one.user], catalog, seen, one.target, 10)
        kept = one.num_candidates > 0  # a target that was seen before is masked
        np.testing.assert_array_equal(one.rank[kept], ranks[kept])
        np.testing.assert_array_equal(one.top_ids, ids)
