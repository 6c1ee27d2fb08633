"""Cached activations: the same training as from images."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.training import cached
from pixelrec_jax.training.cached import with_activations
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.train import evaluate, train_and_evaluate
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import use_tiny_encoders
from tests.training.runs import cached_config


@pytest.fixture(autouse=True)
def _tiny_encoders(monkeypatch):
    use_tiny_encoders(monkeypatch)


def _on_devices(experiment, state, monkeypatch):
    """The experiment with the activations on the devices, a share on each."""
    with monkeypatch.context() as patch:
        patch.setattr(cached, "_free_on_devices", lambda mesh: 1 << 30)
        reading = with_activations(experiment, state.variables)
    assert reading.batches[0].items.activation is None
    rows = reading.resident.activation
    share = (len(rows) // experiment.mesh.size, *rows.shape[1:])
    assert {x.data.shape for x in rows.addressable_shards} == {share}
    return reading


def _gradient(state, config):
    """The gradient of the one step that a state with moments of zero has made."""
    leaves = [np.ravel(x) for x in jax.tree.leaves(jax.device_get(state.opt_state.mu))]
    return np.concatenate(leaves) / (1 - config.optim.b1)


def _assert_like_streaming(streaming, reading, start):
    """Twenty steps have the same losses; one step from a state on their way the same gradient."""
    states, losses = [start], ([], [])
    for experiment, own in zip((streaming, reading), losses, strict=True):
        state = place_state(start, experiment)
        for _ in range(4):
            some, state = run_steps(experiment, 5, state)
            own.extend(some)
            if experiment is streaming:
                states.append(jax.device_get(state))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    for state in states:
        state = state.replace(opt_state=start.opt_state)
        ends = [run_steps(x, 1, place_state(state, x)) for x in (streaming, reading)]
        (expected, actual) = (float(loss[0]) for loss, _ in ends)
        assert actual == pytest.approx(expected, rel=1e-6)
        expected, actual = (_gradient(end, streaming.config) for _, end in ends)
        assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)
    return losses[0]


@pytest.mark.numerical
def test_steps_from_activations_are_those_from_images(toy_dataset, tmp_path):
    """On one device; bfloat16 storage changes losses by less than 1 in 500."""
    config = cached_config(toy_dataset, tmp_path, "user=mf,item=vit_toy")
    streaming = build_experiment(config, devices=jax.devices()[:1])
    start = draw_state(streaming)
    reading = with_activations(streaming, start.variables)
    assert reading.batches[0].items.activation.dtype == np.float32
    losses = _assert_like_streaming(streaming, reading, start)
    config.item.cache_dtype = "bfloat16"
    half = build_experiment(config, devices=jax.devices()[:1])
    half = with_activations(half, start.variables)
    assert half.batches[0].items.activation.dtype == jnp.bfloat16
    rounded, _ = run_steps(half, 5, place_state(start, half))
    np.testing.assert_allclose(rounded, losses[:5], rtol=2e-3)
    assert not np.allclose(rounded, losses[:5], rtol=1e-6)


@pytest.mark.numerical
def test_steps_from_activations_on_eight_devices_are_those_from_images(
    toy_dataset, tmp_path, monkeypatch
):
    """With batch statistics, and an attention pooling that is frozen above a trained layer."""
    config = cached_config(toy_dataset, tmp_path, "user=mf,item=clip_rn50")
    streaming = build_experiment(config)
    start = draw_state(streaming)
    reading = _on_devices(streaming, start, monkeypatch)
    _assert_like_streaming(streaming, reading, start)


@pytest.mark.numerical
def test_a_run_on_activations_is_evaluated_on_images(toy_dataset, tmp_path):
    """Its checkpoint is one of any source."""
    config = cached_config(toy_dataset, tmp_path / "cache")
    config.train.epochs = 1
    trained = train_and_evaluate(config, tmp_path / "run")
    (folder,) = (tmp_path / "cache").iterdir()
    assert (folder / "key.json").exists()
    shutil.rmtree(folder)
    config.item.source = "stream"
    evaluated = evaluate(config, tmp_path / "run")
    assert list((tmp_path / "cache").iterdir()) == []
    expected, actual = (x.pop("test")["model"]["all"] for x in (trained, evaluated))
    assert evaluated == trained
    for name in expected:
        assert actual[name]["value"] == pytest.approx(expected[name]["value"], rel=1e-3)
