"""The training loop: evaluations, early stopping, results, and runs that are refused."""

import json
import shutil

import jax
import numpy as np
import polars
import pytest

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.runs import run_folder
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from pixelrec_jax.training.early_stopping import EarlyStopping
from tests.training.runs import (
    MODELS,
    latest_state,
    run_config,
)


@pytest.fixture(scope="module")
def finished(toy_dataset, tmp_path_factory):
    """The workdir of a finished run, its config and its result."""
    workdir = tmp_path_factory.mktemp("finished")
    config = run_config(MODELS[0], toy_dataset, epochs=1)
    return workdir, config, train.train_and_evaluate(config, workdir)


def test_finished_runs_evaluate_again_to_the_same_result(finished):
    workdir, config, result = finished
    assert train.train_and_evaluate(config, workdir) == result
    assert train.evaluate(config, workdir) == result
    assert json.loads((workdir / "result.json").read_text()) == json.loads(json.dumps(result))


@pytest.mark.parametrize("words", [MODELS[0], "user=mf,item=id,dataset=toy"])
def test_a_split_by_time_ranks_those_who_have_a_past_and_a_target(toy_dataset, tmp_path, words):
    config = run_config(f"{words},split=global_time", toy_dataset, epochs=1)
    config.eval.batch_size = 16  # more than one, the last one partly filled
    result = train.train_and_evaluate(config, tmp_path)
    data = load_interactions(toy_dataset)
    test_from = result["split"]["test_from"]
    assert test_from == np.sort(data.timestamps)[int(0.9 * len(data.timestamps))]
    past, target = {}, {}
    for user in range(1, data.num_users):
        rows = slice(data.offsets[user], data.offsets[user + 1])
        late = data.timestamps[rows] >= test_from
        if late.any() and not late.all():
            past[data.user_ids()[user - 1]] = set(data.items[rows][~late])
            target[user] = data.items[rows][late][0]
    assert 16 < result["test"]["users"]["all"] == len(past) < data.num_users - 1
    seen = data.items[data.timestamps < result["split"]["valid_from"]]
    cold = np.bincount(seen, minlength=data.num_items) <= config.eval.cold_threshold
    assert result["test"]["users"]["cold"] == cold[list(target.values())].sum() > 0
    table = polars.read_parquet(tmp_path / "test_top_k.parquet")
    assert set(table["user_id"]) == set(past)
    number = {name: n for n, name in enumerate(data.item_ids(), start=1)}
    for user, item in zip(table["user_id"], table["item_id"], strict=True):
        assert number[item] not in past[user]
    assert train.evaluate(config, tmp_path) == result


def test_no_epochs_evaluate_the_initial_state_from_which_training_may_go_on(
    finished, toy_dataset, tmp_path
):
    config = run_config(MODELS[0], toy_dataset, epochs=0)
    untrained = train.train_and_evaluate(config, tmp_path / "zero")
    assert untrained["best_step"] == 0
    assert train.train_and_evaluate(config, tmp_path / "zero") == untrained
    assert train.evaluate(config, tmp_path / "zero") == untrained
    (record,) = map(json.loads, (tmp_path / "zero" / "metrics.jsonl").read_text().splitlines())
    assert record["step"] == 0
    config.train.epochs = 1
    result = train.train_and_evaluate(config, tmp_path / "zero")
    later, whole = (latest_state(config, workdir) for workdir in (tmp_path / "zero", finished[0]))
    assert result["best_step"] in (0, later.step)  # the untrained one may be the best
    jax.tree.map(np.testing.assert_array_equal, later, whole)


def test_early_stopping_takes_ties_as_improvement():
    stopping = EarlyStopping(patience=1)
    for value, stops in [(0.2, False), (0.2, False), (0.1, False), (0.1, True)]:
        stopping.update(value)
        assert stopping.stop is stops


def test_training_stops_early_and_keeps_the_best(toy_dataset, tmp_path):
    config = run_config(MODELS[0], toy_dataset, patience=0, epochs=30)
    # Makes the second evaluation worse, or ends in a tie.
    config.optim.update({"lr": 10.0, "weight_decay": 0.0, "warmup_steps": 0})
    result = train.train_and_evaluate(config, tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    evaluations = [r for r in map(json.loads, lines) if "valid/ndcg@10" in r]
    values = [r["valid/ndcg@10"] for r in evaluations]
    assert len(evaluations) < 30
    assert values[-1] < max(values)
    best = max(evaluations, key=lambda r: (r["valid/ndcg@10"], r["step"]))
    assert result["best_step"] == best["step"]


def test_a_loss_that_is_not_a_number_ends_the_run(toy_dataset, tmp_path):
    config = run_config(MODELS[0], toy_dataset)
    config.optim.visual_lr = config.optim.lr = 1e30
    with pytest.raises(UserError, match=r"the loss is nan at step .* lower optim.lr"):
        train.train_and_evaluate(config, tmp_path)


def test_another_config_or_dataset_does_not_continue_a_run(toy_dataset, tmp_path):
    options = {"epochs": 1, "batch_size": 64, "checkpoint_every": 100}
    config = run_config("user=mf,item=vit_toy,dataset=toy", toy_dataset, **options)
    config.item.trainable = "last:1"  # compiles faster
    train.train_and_evaluate(config, tmp_path)
    config.data.threads = 1  # how fast, not what
    train.evaluate(config, tmp_path)
    config.dataset.path = str(tmp_path / "moved")
    shutil.copytree(toy_dataset, config.dataset.path)
    config.train.epochs = 2  # further
    assert train.train_and_evaluate(config, tmp_path)["best_step"]
    manifest = json.loads((tmp_path / "moved" / "manifest.json").read_text())
    manifest["files"]["images/00000.array_record"]["sha256"] = "0" * 64  # other pictures
    (tmp_path / "moved" / "manifest.json").write_text(json.dumps(manifest))
    for run in (train.train_and_evaluate, train.evaluate):
        with pytest.raises(UserError, match="was trained on other data"):
            run(config, tmp_path)
    config.optim.lr = 0.5
    for run in (train.train_and_evaluate, train.evaluate):
        with pytest.raises(UserError, match=r"another config \(optim.lr=0.002 there, 0.5 given\)"):
            run(config, tmp_path)


def test_a_config_that_could_not_start_may_be_corrected(toy_dataset, tmp_path):
    config = run_config(MODELS[1], toy_dataset, epochs=0)
    config.item.weights = "nowhere.safetensors"
    with pytest.raises(UserError, match="vit_toy has no published weights"):
        train.train_and_evaluate(config, tmp_path)
    config.item.weights = ""
    train.train_and_evaluate(config, tmp_path)


def test_two_trainings_do_not_share_a_workdir(toy_dataset, tmp_path):
    config = run_config(MODELS[0], toy_dataset, epochs=1)
    with (
        run_folder.claim(tmp_path, config),
        pytest.raises(UserError, match="another process is training in"),
    ):
        train.train_and_evaluate(config, tmp_path)


def test_evaluating_what_was_not_trained_is_refused(toy_dataset, tmp_path):
    config = run_config(MODELS[0], toy_dataset)
    with pytest.raises(UserError, match="holds no run"):
        train.evaluate(config, tmp_path / "nothing")
