"""Tables differentiated by row: the same training as with gradients of whole tables."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest

from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays, shapes
from pixelrec_jax.recommender import Recommender
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import state_template
from pixelrec_jax.training.step import make_train_step
from tests import double
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import ALL_AXES, interactions_of, tiny_config


def _train(config, devices, steps=3):
    """Compares losses, parameters and both moments, each on its own scale."""
    experiment = build_experiment(config, devices=devices)
    experiment = replace(experiment, model=double.module(experiment.model))
    start = place_state(draw_state(experiment), experiment)
    losses, state = run_steps(experiment, steps, double.cast(start))
    return jax.device_get((losses, state.params, state.opt_state.mu, state.opt_state.nu))


# MF's users and, on several devices, items repeat in a batch; clipping needs the norm of sums.
@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("user", ["sasrec", "mf"])
def test_training_is_that_with_gradients_of_whole_tables(toy_dataset, monkeypatch, user, devices):
    config = tiny_config(f"user={user},item=id,dataset=toy", toy_dataset)
    if "layers" in config.user:
        config.user.layers = 1
    config.optim.clip_norm = 0.1
    sparse = _train(config, jax.devices()[:devices])
    monkeypatch.setattr(Recommender, "embedding_lookups", lambda self, **_: {})
    dense = _train(config, jax.devices()[:devices])
    for actual, expected in zip(sparse, dense, strict=True):
        double.assert_close(actual, expected)


def _in_rows(new, old, rows):
    """The new table in these rows, the old one elsewhere."""
    is_row = np.isin(np.arange(len(old)), rows)[:, None]
    return np.where(is_row, new, old)


@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize(("user", "mesh"), [("sasrec", {}), ("mf", ALL_AXES)])
def test_lazy_tables_train_as_dense_ones_of_which_other_rows_are_taken_back(
    toy_dataset, user, mesh
):
    """Every step of the twin is dense, and undone in the rows that its batch did not read."""
    config = tiny_config(f"user={user},item=id,dataset=toy", toy_dataset)
    config.optim.update({"clip_norm": 0.1, "warmup_steps": 2, "lr": 0.01})
    config.mesh.update(mesh)
    devices = jax.devices()[: 8 if mesh else 1]
    dense = build_experiment(config, devices=devices)
    config.optim.lazy_tables = True
    lazy = build_experiment(config, devices=devices)
    dense, lazy = (replace(x, model=double.module(x.model)) for x in (dense, lazy))
    start = draw_state(lazy)
    losses, state = run_steps(lazy, 4, double.cast(place_state(start, lazy)))
    step, twin = make_train_step(dense), double.cast(place_state(start, dense))
    expected = []
    for index in range(4):
        batch, old = dense.batches[index], jax.device_get(twin)
        twin, metrics = step(
            twin, make_global_arrays(batch, dense.mesh, BATCH_SPEC), dense.resident
        )
        expected.append(float(metrics["loss"]))
        twin = jax.tree_util.tree_map_with_path(
            lambda path, new, old, batch=batch: _taken_back(path, new, old, batch), twin, old
        )
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    for actual, wanted in ((state.params, twin.params), (state.opt_state, twin.opt_state)):
        for one, other in zip(*map(jax.tree.leaves, (actual, wanted)), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


def _taken_back(path, new, old, batch):
    names = jax.tree_util.keystr(path, simple=True, separator="/")
    if not names.endswith("/table"):
        return new
    rows = batch.items.id if "item_encoder" in names else batch.user
    return jax.device_put(_in_rows(new, old, rows), new.sharding)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_with_lazy_tables_makes_nothing_of_the_size_of_a_table(devices):
    """Every instruction that returns a table is one that changes rows of it in place."""
    items = 50_001
    config = tiny_config("user=mf,item=id,dataset=custom")
    config.optim.update({"lazy_tables": True, "clip_norm": 1.0})
    if devices > 1:
        config.mesh.update(ALL_AXES)
    data = interactions_of(list(np.random.default_rng(0).integers(1, items, (30, 9))), items)
    experiment = build_experiment(config, devices=jax.devices()[:devices], interactions=data)
    state = state_template(experiment)
    table = state.trainable["item_encoder"]["table"]
    shard = table.sharding.shard_shape(table.shape)
    batch = shapes(experiment.batches[0], experiment.mesh, BATCH_SPEC)
    compiled = make_train_step(experiment).lower(state, batch, experiment.resident).compile()
    size = 4 * np.prod(shard)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes > 3 * size  # the table and both moments, in place
    assert memory.temp_size_in_bytes < size
    shape = re.escape(f"f32[{','.join(map(str, shard))}]")
    made = re.findall(rf" = {shape}\S* ([\w-]+)\(", compiled.as_text())
    assert made.count("scatter") == 3
    assert set(made) <= {"scatter", "parameter", "get-tuple-element", "fusion", "while", "bitcast"}


@pytest.mark.parametrize("words", ["user=lightgcn,item=id", "user=sasrec,item=vit_toy"])
def test_lazy_tables_are_refused_where_no_row_is_looked_up(toy_dataset, words):
    config = tiny_config(f"{words},dataset=toy", toy_dataset)
    config.optim.lazy_tables = True
    with pytest.raises(UserError, match=r"lazy_tables=True, but in .* no step reads single rows"):
        build_experiment(config, devices=jax.devices()[:1])
