"""Where parameters live: rules, their errors, and a model too large for one chip."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from pixelrec_jax.config import load_config
from pixelrec_jax.errors import UserError
from pixelrec_jax.experiment import build_experiment
from pixelrec_jax.sharding import BATCH, infer_shardings
from pixelrec_jax.state import state_template
from pixelrec_jax.train import make_train_step
from tests.tiny import ROOT, interactions_of, tiny_config

USERS, ITEMS = 200_000, 96_282  # of Pixel200K


def test_mf_of_the_paper_is_split_over_eight_devices_without_allocating_it():
    """1.2 B parameters (Table 9): a device keeps an eighth of them and of their Adam moments."""
    config = load_config(f"{ROOT}/configs/pixelrec.py:user=mf,item=id,dataset=pixel200k").unlock()
    config.mesh.fsdp = 8
    sequences = np.random.default_rng(0).integers(1, ITEMS + 1, (USERS, 3))
    interactions = interactions_of(list(sequences), ITEMS + 1)
    experiment = build_experiment(config, interactions=interactions)
    state = state_template(experiment)
    parameters = sum(x.size for x in jax.tree.leaves(state.trainable))
    assert round(parameters / 1e6) == 1214  # the paper does not count the padding user
    sharding = NamedSharding(experiment.mesh, BATCH)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), experiment.batches[0]
    )
    step = make_train_step(experiment).lower(state, batch, None).compile()
    memory = step.memory_analysis()
    tables = 3 * 4 * parameters / 8  # with both moments, in bytes
    assert tables < memory.argument_size_in_bytes < 1.01 * tables
    # Updated in place, and no device ever holds a table as a whole.
    assert memory.alias_size_in_bytes > 0.99 * tables
    assert memory.temp_size_in_bytes < tables / 2


def test_a_parameter_that_does_not_divide_is_refused(toy_dataset):
    config = tiny_config("user=mf,item=id,dataset=toy", toy_dataset)
    config.width = 12
    config.mesh.fsdp = 8
    with pytest.raises(UserError, match=r"table \[\d+, 12\] does not divide into 8 .* multiple"):
        state_template(build_experiment(config))


def test_a_parameter_without_a_rule_is_refused(toy_dataset):
    mesh = build_experiment(tiny_config("user=mf,item=id,dataset=toy", toy_dataset)).mesh
    tree = {"other": {"kernel": jnp.zeros((2, 3))}}
    with pytest.raises(UserError, match=r"no sharding rule covers .*other/kernel \(2, 3\)"):
        infer_shardings(tree, mesh, rules=(("table", BATCH),))
