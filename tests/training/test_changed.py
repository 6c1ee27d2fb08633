"""What may change under a run: options that do not change its result, and no data."""

import json
import shutil

import jax
import numpy as np
import pytest

from pixelrec_jax.configs.checks import changing
from pixelrec_jax.evaluation.result import RESULT
from pixelrec_jax.runs.checkpoint import Checkpoints
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from tests.training.runs import MODELS, KilledError, dying_iterate, finish_run, run_config


def _others(config, kinds, dataset):
    """Other values of all keys whose change has one of these kinds, by dotted key."""
    values = flatten(config.to_dict())
    changes = changing(config)
    keys = [key for key in values if changes[key] in kinds]
    others = {key: values[key] + 3 for key in keys if isinstance(values[key], int)}
    others["dataset.path"] = str(dataset)
    untried = set(keys) - set(others)
    assert untried == {"log.writers"}  # which needs a package that tests do not have
    return others


@pytest.fixture(scope="module")
def whole(toy_dataset, tmp_path_factory):
    """The end of an undisturbed run."""
    return finish_run(run_config(MODELS[0], toy_dataset), tmp_path_factory.mktemp("whole"))


def test_options_that_change_nothing_leave_a_continued_run_bit_for_bit(
    whole, toy_dataset, tmp_path, monkeypatch
):
    config = run_config(MODELS[0], toy_dataset)
    with monkeypatch.context() as patch:
        patch.setattr(train, "iterate", dying_iterate(4))
        with pytest.raises(KilledError):
            train.train_and_evaluate(config, tmp_path / "killed")
    shutil.copytree(toy_dataset, tmp_path / "moved")
    others = _others(config, {"nothing"}, tmp_path / "moved")
    assert {"eval.batch_size", "eval.chunk", "train.log_every", "train.checkpoint_every"} <= set(
        others
    )
    others["data.workers"], others["eval.encode_batch_size"] = 0, 7
    others["profile.start"] = others["profile.steps"] = 0  # a trace takes seconds
    config.update_from_flattened_dict(others)
    continued = finish_run(config, tmp_path / "killed")
    for field in ("step", "trainable", "frozen", "model_state", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(continued[0], field),
            getattr(whole[0], field),
        )
    assert continued[2] == whole[2]
    # The mean loss is of the steps that it names, although other lines were logged before.
    losses = [record["train/loss"] for record in whole[1]]
    for record in continued[1]:
        assert 0.9 * min(losses) < record["train/loss"] < 1.1 * max(losses)


def test_a_finished_run_can_be_evaluated_at_other_ks(toy_dataset, tmp_path):
    config = run_config(MODELS[0], toy_dataset, epochs=1)
    before = train.train_and_evaluate(config, tmp_path)
    config.eval.ks, config.eval.cold_threshold = (1, 10, 20), 4
    after = train.evaluate(config, tmp_path)
    metrics = after["test"]["model"]["all"]
    assert {name.partition("@")[2] for name in metrics} == {"1", "10", "20"}
    assert metrics["ndcg@10"] == before["test"]["model"]["all"]["ndcg@10"]
    assert after["best_step"] == before["best_step"]
    assert RESULT.read(tmp_path / RESULT.name) == json.loads(json.dumps(after))
    assert train.train_and_evaluate(config, tmp_path) == after  # nothing is left to train


def _of_another_seed(folder, _):
    items = np.load(folder / "items.npy")
    np.save(folder / "items.npy", items[::-1])  # in place and of the same size


def _gone(folder, _):
    shutil.rmtree(folder)


@pytest.mark.parametrize("change", [_of_another_seed, _gone])
def test_data_that_change_under_a_run_end_it_before_anything_is_saved(
    whole, toy_dataset, tmp_path, monkeypatch, change
):
    data, workdir = tmp_path / "data", tmp_path / "run"
    shutil.copytree(toy_dataset, data)
    config = run_config(MODELS[0], data)
    iterate = train.iterate

    def changing_iterate(batches, **options):
        change(data, config)
        return iterate(batches, **options)

    with monkeypatch.context() as patch:
        patch.setattr(train, "iterate", changing_iterate)
        with pytest.raises(UserError, match=r"data/\w+\.\w+ (has other|is gone)"):
            train.train_and_evaluate(config, workdir)
    assert not (workdir / RESULT.name).exists()
    with Checkpoints(workdir / "checkpoints", metric="ndcg@10", read_only=True) as checkpoints:
        assert checkpoints.latest is None
    shutil.rmtree(data, ignore_errors=True)
    shutil.copytree(toy_dataset, data)
    assert train.train_and_evaluate(config, workdir) == whole[2]
