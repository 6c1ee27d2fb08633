"""The train step: same losses on any mesh, frozen blocks, clipping, rows that only fill up."""

from functools import partial

import jax
import numpy as np
import pytest

from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.step import make_train_step
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import ALL_AXES, use_tiny_encoders
from tests.training.runs import MODELS, run_config


def _on_one_device(config):
    """An experiment on one device, and a state there and on the host."""
    experiment = build_experiment(config, devices=jax.devices()[:1])
    start = draw_state(experiment)
    return experiment, place_state(start, experiment), start


@pytest.mark.slow
@pytest.mark.numerical
@pytest.mark.parametrize(("words", "mesh"), [(MODELS[0], {"data": 8}), (MODELS[1], ALL_AXES)])
def test_losses_are_those_of_one_device(toy_dataset, words, mesh):
    """Those with dropout, from the start that each mesh draws for itself."""
    config = run_config(words, toy_dataset)
    one, _ = run_steps(build_experiment(config, devices=jax.devices()[:1]), 20)
    assert one[-5:].mean() < one[:5].mean()
    config.mesh.update(mesh)
    np.testing.assert_allclose(run_steps(build_experiment(config), 20)[0], one, rtol=1e-5)


def test_frozen_batch_norm_keeps_its_statistics_unless_asked_to_train(toy_dataset, monkeypatch):
    use_tiny_encoders(monkeypatch)
    config = run_config("user=mf,item=efficientnet_lite0,dataset=toy", toy_dataset)
    config.item.update({"weights": "", "trainable": "last:1"})

    def changed_blocks():
        experiment, state, before = _on_one_device(config)
        before = before.model_state["batch_stats"]["item_encoder"]["backbone"]
        _, state = run_steps(experiment, 1, state)
        after = state.model_state["batch_stats"]["item_encoder"]["backbone"]
        differ = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, after)
        return {name for name, tree in differ.items() if any(jax.tree.leaves(tree))}

    assert changed_blocks() == {"head"}
    config.item.frozen_in_train_mode = True
    assert changed_blocks() == {"stem", "stage_0", "stage_1", "head"}
    config.item.update({"frozen_in_train_mode": False, "frozen_statistics": True})
    config.train.microbatches = 2
    assert changed_blocks() == set()


def test_a_mesh_that_does_not_cover_the_devices_is_refused(toy_dataset):
    config = run_config(MODELS[0], toy_dataset)
    config.mesh.update({"data": 3, "fsdp": 2})
    with pytest.raises(UserError, match="their product must be 8"):
        build_experiment(config)


def test_frozen_blocks_stay_and_have_no_moments(toy_dataset):
    config = run_config(MODELS[1], toy_dataset)
    config.item.trainable = "last:1"
    experiment, state, before = _on_one_device(config)
    assert set(before.frozen["item_encoder"]["backbone"]) == {"stem", "block_0"}
    assert set(before.trainable["item_encoder"]["backbone"]) == {"block_1", "norm"}
    moments = [x for x in jax.tree.leaves(before.opt_state) if x.ndim]
    trainable = sum(x.size for x in jax.tree.leaves(before.trainable))
    assert sum(x.size for x in moments) == 2 * trainable
    _, after = run_steps(experiment, 3, state)
    jax.tree.map(np.testing.assert_array_equal, before.frozen, jax.device_get(after.frozen))
    for old, new in zip(
        jax.tree.leaves(before.trainable), jax.tree.leaves(after.trainable), strict=True
    ):
        assert not np.array_equal(old, new)


def test_gradients_are_clipped(toy_dataset):
    # Clipped to next to nothing, Adam's epsilon leaves no step; the decay is off.
    config = run_config(MODELS[0], toy_dataset)
    config.optim.update({"clip_norm": 1e-12, "weight_decay": 0.0, "visual_weight_decay": 0.0})
    experiment, state, before = _on_one_device(config)
    _, after = run_steps(experiment, 2, state)
    close = partial(np.testing.assert_allclose, atol=1e-6)
    jax.tree.map(close, before.params, jax.device_get(after.params))


def test_rows_that_fill_up_the_last_batch_do_not_count(toy_dataset):
    """The loss of a partly empty batch is that of its real rows alone."""
    config = run_config(MODELS[0], toy_dataset)
    config.user.dropout = 0.0  # which falls on other places of a smaller batch
    experiment, state, start = _on_one_device(config)
    batch = experiment.batches[experiment.batches.steps_per_epoch - 1]
    real = int((batch.user > 0).sum())
    assert 0 < real < config.train.batch_size
    rows = {
        name: getattr(batch, name)[:, :real]
        for name in ("user", "history", "positive", "negative", "weight")
    }
    step = make_train_step(experiment)
    every = make_global_arrays(batch, experiment.mesh, BATCH_SPEC)
    _, whole = step(state, every, experiment.resident)
    alone = make_global_arrays(batch.replace(**rows), experiment.mesh, BATCH_SPEC)
    _, alone = step(place_state(start, experiment), alone, experiment.resident)
    np.testing.assert_allclose(whole["loss"], alone["loss"], rtol=1e-6)
