"""Cached activations: the same training as from images."""

import jax
import numpy as np
import optax
import pytest

from pixelrec_jax.training import cached
from pixelrec_jax.training.cached import with_activations
from pixelrec_jax.training.experiment import build_experiment
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import use_tiny_encoders
from tests.training.runs import cached_config, finish_run


@pytest.fixture(autouse=True)
def _tiny_encoders(monkeypatch):
    use_tiny_encoders(monkeypatch)


def _by_place(experiment, state, monkeypatch):
    """The experiment that streams, and those that read activations on the host and on devices."""
    on_host = with_activations(experiment, state.variables)
    assert on_host.batches[0].items.activation is not None
    with monkeypatch.context() as patch:
        patch.setattr(cached, "_free_on_devices", lambda mesh: 1 << 30)
        on_devices = with_activations(experiment, state.variables)
    assert on_devices.batches[0].items.activation is None
    rows = on_devices.resident.activation
    assert {x.data.shape for x in rows.addressable_shards} == {
        (len(rows) // experiment.mesh.size, *rows.shape[1:])
    }
    return experiment, on_host, on_devices


def _gradient(state, config):
    """The gradient of the one step that a state with moments of zero has made."""
    (adam,) = (x for x in state.opt_state if isinstance(x, optax.ScaleByAdamState))
    leaves = [np.ravel(x) for x in jax.tree.leaves(adam.mu)]
    return np.concatenate(leaves) / (1 - config.optim.b1)


@pytest.mark.numerical
@pytest.mark.parametrize(("item", "devices"), [("clip_vit_b32", 1), ("clip_rn50", 8)])
def test_losses_and_gradients_are_those_of_streaming(
    toy_dataset, tmp_path, monkeypatch, item, devices
):
    """With dropout and batch statistics; attention pooling is frozen above a trained layer."""
    config = cached_config(toy_dataset, tmp_path, f"user=sasrec,item={item}")
    streaming = build_experiment(config, devices=jax.devices()[:devices])
    start = draw_state(streaming)
    experiments = _by_place(streaming, start, monkeypatch)
    states, losses = [start], []
    for experiment in experiments:  # twenty steps, each from where the last one has led
        state, all_losses = place_state(start, experiment), []
        for _ in range(4):
            some, state = run_steps(experiment, 5, state)
            all_losses.extend(some)
            if experiment is streaming:
                states.append(jax.device_get(state))
        losses.append(all_losses)
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-5)
    for state in states:  # one step from the same state
        state = state.replace(opt_state=start.opt_state)
        ends = [run_steps(x, 1, place_state(state, x)) for x in experiments]
        (loss, *other_losses) = (float(loss[0]) for loss, _ in ends)
        (gradient, *others) = (_gradient(jax.device_get(end), config) for _, end in ends)
        np.testing.assert_allclose(other_losses, loss, rtol=1e-6)
        for other in others:
            assert np.linalg.norm(other - gradient) < 1e-5 * np.linalg.norm(gradient)


@pytest.mark.numerical
def test_a_run_of_images_continues_from_activations(toy_dataset, tmp_path):
    config = cached_config(toy_dataset, tmp_path / "cache")
    config.item.source = "stream"
    _, whole, expected = finish_run(config, tmp_path / "whole")
    config.train.epochs = 1
    finish_run(config, tmp_path / "run")
    assert not (tmp_path / "cache").exists()
    config.update_from_flattened_dict({"train.epochs": 2, "item.source": "cached"})
    _, records, result = finish_run(config, tmp_path / "run")
    assert (tmp_path / "cache").exists()
    assert len(records) == len(whole)
    for record, other in zip(records, whole, strict=True):
        assert record["train/loss"] == pytest.approx(other["train/loss"], rel=1e-4)
    assert result["best_step"] == expected["best_step"]
    metrics, others = (x["test"]["model"]["all"] for x in (result, expected))
    for name in metrics:
        assert metrics[name]["value"] == pytest.approx(others[name]["value"], rel=1e-3)
