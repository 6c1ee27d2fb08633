"""A run starts from another one's encoders: which parameters, and what does not fit."""

import re
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from pixelrec_jax.configs.checks import check_values
from pixelrec_jax.ingest import toy
from pixelrec_jax.ingest.prepare import prepare
from pixelrec_jax.runs.checkpoint import best_variables
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.initialize import init_state
from tests.tiny import random_store, tiny_config, use_tiny_encoders
from tests.training.runs import KilledError, assert_equal_runs, dying_iterate, finish_run


@pytest.fixture(scope="module", autouse=True)
def _tiny_encoders():
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoders(patch)
        yield


@pytest.fixture(scope="module")
def target_dataset(tmp_path_factory):
    """Another catalogue: other items, other numbers of items and users."""
    folder = tmp_path_factory.mktemp("target")
    toy.generate(folder / "raw", seed=1, users=40, items=110, image_size=16)
    prepare(folder / "raw" / "interactions.csv", folder / "raw" / "images", folder / "prepared")
    return folder / "prepared"


def _config(words, dataset, **changes):
    config = tiny_config(f"{words},dataset=toy", dataset)
    if "trainable" in config.item:
        config.item.update({"weights": "", "trainable": "last:1"})
    config.train.update({"epochs": 2, "batch_size": 32, "checkpoint_every": 1, "log_every": 1})
    config.warm_start.update(changes)
    return config


def _source(words, dataset, workdir):
    config = _config(words, dataset)
    config.seed = 1  # otherwise it would start as the target does
    config.train.epochs = 0 if "vit" in words else 1  # running statistics must have moved
    config.train.update({"batch_size": 512, "checkpoint_every": 100})
    train.train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def sources(toy_dataset, tmp_path_factory):
    """Finished runs by the words that name them."""
    folder = tmp_path_factory.mktemp("sources")
    made = {}

    def get(words):
        if words not in made:
            made[words] = _source(words, toy_dataset, folder / str(len(made)))
        return made[words]

    return get


def _flat(variables):
    return {"/".join(path): np.asarray(x) for path, x in flatten_dict(variables).items()}


@pytest.mark.parametrize(
    ("source", "target", "scope", "taken"),
    [
        ("user=sasrec,item=vit_toy", "user=sasrec,item=vit_toy", "all", ""),
        ("user=sasrec,item=vit_toy", "user=mf,item=vit_toy", "item", "item_encoder/"),
        ("user=mf,item=efficientnet_lite0", "user=mf,item=efficientnet_lite0", "all", "item_enc"),
    ],
)
def test_what_is_taken_equals_the_source_and_the_rest_is_fresh(
    sources, target_dataset, source, target, scope, taken
):
    """Of MF's parameters "all" takes those of items only: its users are others."""
    workdir = sources(source)
    from_source = _config(target, target_dataset, run=str(workdir), scope=scope)
    fresh = jax.device_get(init_state(build_experiment(_config(target, target_dataset))))
    state = jax.device_get(init_state(build_experiment(from_source)))
    _, variables = best_variables(workdir, from_source)
    there, here, without = _flat(variables), _flat(state.variables), _flat(fresh.variables)
    differ = set()
    for path, value in here.items():
        is_taken = path.split("/", 1)[1].startswith(taken)
        np.testing.assert_array_equal(value, (there if is_taken else without)[path])
        if is_taken and not np.array_equal(value, without[path]):
            differ.add(path)
    backbone = "params/item_encoder/backbone/"
    frozen = {backbone + path for path in _flat(state.frozen["item_encoder"]["backbone"])}
    assert differ & frozen
    assert differ - frozen
    assert any(path.startswith("params/item_encoder/head/") for path in differ)
    assert ("efficientnet" in source) == any(path.startswith("batch_stats/") for path in differ)
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)


def test_a_killed_run_goes_on_without_its_source(sources, target_dataset, tmp_path, monkeypatch):
    words = "user=sasrec,item=vit_toy"
    source = tmp_path / "source"
    shutil.copytree(sources(words), source)
    config = _config(words, target_dataset, run=str(source))
    config.train.epochs = config.user.layers = 1
    whole = finish_run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(train, "iterate", dying_iterate(1))
        with pytest.raises(KilledError):
            train.train_and_evaluate(config, tmp_path / "killed")
    shutil.rmtree(source)
    assert_equal_runs(finish_run(config, tmp_path / "killed"), whole)


@pytest.mark.parametrize(
    ("words", "changes", "message"),
    [
        ("user=sasrec,item=id", {}, "warm_start.run cannot start item=id: ids are not those"),
        ("user=sasrec,item=id+features", {}, "warm_start.run cannot start item=id+features"),
        ("user=sasrec,item=swin_t", {}, "was trained with item.name='vit_toy', but 'swin_t' is"),
        ("user=sasrec,item=vit_toy", {"item.pool": "cls"}, "item.pool='tokens', but 'cls' is"),
        ("user=sasrec,item=vit_toy", {"width": 32}, "head/bias is (16,) there and (32,) here"),
        (
            "user=sasrec,item=vit_toy",
            {"item.dnn_layers": (8,)},
            "with item.dnn_layers=[], but [8] is given",
        ),
        (
            "user=gru4rec,item=vit_toy",
            {"warm_start.scope": "all"},
            "with user.name='sasrec', but 'gru4rec' is given",
        ),
        (
            "user=sasrec,item=vit_toy",
            {"warm_start.scope": "all", "task.history_length": 5},
            "user_encoder/position is (10, 16) there and (5, 16) here",
        ),
        (
            "user=sasrec,item=vit_toy",
            {"warm_start.scope": "all", "user.layers": 1},
            "with user.layers=2, but 1 is given",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(sources, toy_dataset, words, changes, message):
    config = _config(words, toy_dataset, run=str(sources("user=sasrec,item=vit_toy")))
    config.update_from_flattened_dict(changes)
    store = random_store(config.item, num_items=101)
    with pytest.raises(UserError, match=re.escape(message)):
        init_state(build_experiment(config, store=store))


def test_a_source_that_is_no_finished_run_is_one_line(sources, toy_dataset, tmp_path):
    words = "user=sasrec,item=vit_toy"
    experiment = build_experiment(_config(words, toy_dataset, run=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="nowhere does not hold a run; give"):
        init_state(experiment)
    finished = sources(words)
    experiment = build_experiment(_config(words, toy_dataset, run=str(tmp_path)))
    shutil.copy(finished / "config.json", tmp_path)
    with pytest.raises(UserError, match="has not finished; finish it with"):
        init_state(experiment)
    shutil.copy(finished / "result.json", tmp_path)
    with pytest.raises(UserError, match="checkpoints does not exist"):
        init_state(experiment)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json has \[\]"):
        init_state(experiment)


def test_scopes_have_names():
    config = _config("user=sasrec,item=id", "", scope="backbone")
    with pytest.raises(UserError, match=r"warm_start.scope='backbone'; expected item or all"):
        check_values(config)
