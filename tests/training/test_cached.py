"""Cached activations: the same training as from images, made once, whole or not at all."""

import jax
import numpy as np
import pytest

from pixelrec_jax.training.cached import with_activations
from pixelrec_jax.training.experiment import build_experiment
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import use_tiny_encoders
from tests.training.runs import run_config


@pytest.fixture(autouse=True)
def _tiny_encoders(monkeypatch):
    use_tiny_encoders(monkeypatch)


def _config(toy_dataset, folder, words="user=mf,item=vit_toy", **item):
    config = run_config(f"{words},dataset=toy", toy_dataset)
    item = {"weights": "", "trainable": "last:1", "source": "cached"} | item
    config.item.update(item | {"cache_dir": str(folder)})
    return config


@pytest.mark.numerical
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("item", ["clip_vit_b32", "clip_rn50"])
def test_losses_are_those_of_streaming(toy_dataset, tmp_path, item, devices):
    """Dropout and batch statistics included; attention pooling is frozen above a trained layer."""
    config = _config(toy_dataset, tmp_path, f"user=sasrec,item={item}")
    streaming = build_experiment(config, devices=jax.devices()[:devices])
    start = draw_state(streaming)
    cached = with_activations(streaming, start.variables)
    losses = [run_steps(x, 20, place_state(start, x))[0] for x in (streaming, cached)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
