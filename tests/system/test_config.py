"""Values of a config that no run can work with are one line each."""

import re

import jax
import numpy as np
import pytest

from pixelrec_jax.configs import pixelrec
from pixelrec_jax.configs.base import shared_keys
from pixelrec_jax.configs.checks import check_values, meaning
from pixelrec_jax.data.tasks import TASKS
from pixelrec_jax.items import ITEM_ENCODERS, item_options
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import options_of
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.users import USER_ENCODERS
from tests.tiny import interactions_of, items_of, tiny_config

BELOW_RANGE = {int: -1, float: -1.0, str: "many", tuple: (-1,)}


@pytest.mark.parametrize("user", USER_ENCODERS)
def test_every_setting_of_a_user_encoder_has_a_range(user):
    config = tiny_config(f"user={user},item={items_of(user)[0]},dataset=custom")
    check_values(config)
    for key, value in config.user.items():
        if key == "name" or isinstance(value, bool):
            continue
        config.user[key] = BELOW_RANGE[type(value)]
        with pytest.raises(UserError, match=rf"user\.{key}=.*; expected"):
            check_values(config)
        config.user[key] = value


@pytest.mark.parametrize(
    ("words", "key", "value", "message"),
    [
        ("user=sasrec", "user.layers", 0, "user.layers=0; expected 1 or more"),
        ("user=lightgcn", "user.layers", 0, "user.layers=0; expected 1 or more"),
        ("user=srgnn", "user.steps", 0, "user.steps=0; expected 1 or more"),
        ("user=lightsans", "user.interests", 0, "user.interests=0; expected 1 or more"),
        ("user=nextitnet", "user.dilations", (), "user.dilations is empty; give at least one"),
        ("user=nextitnet", "user.dilations", (1, 0), "user.dilations=(1, 0); expected whole"),
        ("user=nextitnet", "user.dilations", (1.5,), "user.dilations=(1.5,); expected whole"),
        ("user=nextitnet", "user.dilations", (True,), "user.dilations=(True,); expected whole"),
        ("user=visrank,item=features", "user.average_top_k", 0, "expected 1 or more"),
        ("item=semantic_ids", "item.codebook_size", 0, "item.codebook_size=0; expected 1 or more"),
        ("item=features", "item.dnn_layers", (8, 0), "item.dnn_layers=(8, 0); expected whole"),
        ("user=bert4rec", "task.mask_ratio", 0.0, "expected more than 0 and less than 1"),
        ("user=bert4rec", "task.mask_ratio", 1.0, "expected more than 0 and less than 1"),
        ("user=bert4rec", "task.mask_ratio", -0.1, "expected more than 0 and less than 1"),
        ("user=bert4rec", "task.mask_ratio", 1.5, "expected more than 0 and less than 1"),
        ("user=bert4rec", "task.name", "next_item", "'next_item' does not suit user=bert4rec"),
        ("user=sasrec", "task.name", "cloze", "'cloze' does not suit user=sasrec"),
        ("user=sasrec", "negatives.count", 0, "negatives.count=0; expected 1 or more"),
        ("user=sasrec", "eval.ks", (), "eval.ks is empty; give at least one"),
        ("user=sasrec", "optim.warmup_steps", 10**11, "expected at most 2147483647"),
        ("user=sasrec", "optim.warmup_steps", 2**31, "expected at most 2147483647"),
        ("user=sasrec", "optim.lr", 1e39, "expected at most 3.4e+38"),
        ("user=sasrec", "data.workers", 99_999_999, "expected at most 1024"),
        ("user=sasrec", "user.name", "mf", "user.name=mf does not take user.dropout, which"),
        ("user=sasrec", "eval.ks", (True,), "eval.ks=(True,); expected whole"),
    ],
)
def test_values_out_of_range(words, key, value, message):
    config = tiny_config(f"{words},dataset=custom")
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=re.escape(message)):
        check_values(config)


def test_one_state_of_a_user_is_not_scored_against_many_targets():
    config = tiny_config("user=fm,item=id,dataset=custom")
    config.task.name = "next_item"
    config.width = 20  # could be cut into one part for each of the 10 targets
    interactions = interactions_of([np.arange(1, 13)] * 16, 40)
    experiment = build_experiment(config, devices=jax.devices()[:1], interactions=interactions)
    with pytest.raises(UserError, match="10 targets for a history"):
        jax.eval_shape(
            lambda batch: experiment.model.init(jax.random.key(0), batch, train=True),
            experiment.batches[0],
        )


@pytest.mark.parametrize("dataset", pixelrec.DATASETS)
@pytest.mark.parametrize("split", pixelrec.SPLITS)
def test_every_dataset_and_split_makes_a_config(dataset, split):
    config = pixelrec.get_config(f"dataset={dataset},split={split}")
    check_values(config)
    assert (config.dataset.name, config.dataset.split.name) == (dataset, split)


def test_an_option_has_one_meaning_whoever_takes_it():
    declared = [(f"{section}.{key}", option) for section, key, option in declared_options()]
    assert len(declared) > len(dict(declared))  # some are taken by several
    for key, option in declared:
        assert meaning(key) == option.meaning


def declared_options():
    for encoder in USER_ENCODERS.values():
        yield from (("user", *pair) for pair in options_of(encoder).items())
    for name in ITEM_ENCODERS:
        yield from (("item", *pair) for pair in item_options(name).items())
    for task in TASKS.values():
        yield from (("task", *pair) for pair in task.options.items())


@pytest.mark.parametrize("user", USER_ENCODERS)
@pytest.mark.parametrize("split", pixelrec.SPLITS)
def test_every_key_of_a_config_has_a_meaning(user, split):
    for item in items_of(user):
        config = pixelrec.get_config(f"user={user},item={item},split={split}")
        for key in flatten(config.to_dict()):
            assert re.fullmatch(r"\S.{8,90}[^\s.]", meaning(key)), key


def test_every_default_is_in_its_range():
    defaults = flatten(pixelrec.base().to_dict())
    assert defaults.keys() == shared_keys().keys()
    for name, key in shared_keys().items():
        assert defaults[name] == key.default
        assert key.range is None or not key.range.fault(key.default), name


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("user.layer", "the config has no key 'user.layer'; did you mean 'user.layers'?"),
        ("item.init_sdt", "no key 'item.init_sdt'; did you mean 'item.init_std'?"),
        ("negatives.cont", "no key 'negatives.cont'; did you mean 'negatives.count'?"),
        ("optim.weight_decai", "no key 'optim.weight_decai'; did you mean 'optim.weight_decay'?"),
    ],
)
def test_an_unknown_key_is_one_line_with_the_nearest(key, message):
    config = pixelrec.get_config("user=sasrec,item=id").unlock()
    section, name = key.split(".")
    config[section][name] = 1
    with pytest.raises(UserError, match=re.escape(message)) as error:
        check_values(config)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=re.escape(message)):
        meaning(key)


@pytest.mark.parametrize("key", ["mesh.fsdp_min_size", "warm_start.run", "seed", "loss.epsilon"])
def test_a_config_of_another_version_is_one_line(key):
    config = pixelrec.get_config("user=sasrec,item=id").unlock()
    section, _, name = key.rpartition(".")
    del (config[section] if section else config)[name]
    with pytest.raises(UserError, match=f"the config lacks {key}; .* in a new workdir"):
        check_values(config)


@pytest.mark.parametrize("user", USER_ENCODERS)
@pytest.mark.parametrize("item", ITEM_ENCODERS)
def test_a_user_encoder_takes_the_items_that_it_declares(user, item):
    config = pixelrec.get_config(f"user={user},item={item}")
    encoder = USER_ENCODERS[user]
    if item in items_of(user):
        encoder.check_item(config.item)
        return
    with pytest.raises(UserError, match=f"cannot take item={re.escape(item)}: .+; use item="):
        encoder.check_item(config.item)
