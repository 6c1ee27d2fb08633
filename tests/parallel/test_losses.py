"""With every item encoder, losses on a mesh of all axes are those of one device, in float64.

In float32, six steps of Adam make 1e-5 of a rounding at a kink of a ReLU in some models; equal
losses in float32, with every user encoder, are shown by `test_learning`. In float64 a difference
is an error, but for 1e-9: of gradients that are zero but for rounding, Adam makes steps of that
size.

An error of a gradient or of an optimizer step shows in the loss of the next step, one of Adam's
moments in that of the step after: six steps are enough, at a rate of learning that moves
parameters as far as twenty would at the default one.
"""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from pixelrec_jax.items import vision
from pixelrec_jax.items.vision.resnet import Basic, Bottleneck, ResNet
from pixelrec_jax.training.experiment import build_experiment
from tests import double
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import (
    ALL_AXES,
    TINY,
    interactions_of,
    random_store,
    tiny_config,
    use_tiny_encoders,
)

pytestmark = pytest.mark.slow


def _losses(config, devices, start=None):
    """Returns the losses on these devices, and the state that they started from, on the host."""
    config.optim.lr = config.optim.visual_lr = 5e-4
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 41, rng.integers(5, 13)) for _ in range(40)]
    interactions = interactions_of(sequences, 41)
    store = random_store(config.item, 41)
    experiment = build_experiment(config, devices=devices, interactions=interactions, store=store)
    experiment = replace(experiment, model=double.module(experiment.model))
    start = draw_state(experiment) if start is None else start
    return run_steps(experiment, 6, double.cast(place_state(start, experiment)))[0], start


def _wide_resnet(unit):
    """With the stages that are split over "tensor"."""
    return replace(TINY["resnet50"], backbone=partial(ResNet, unit, (1, 1, 1, 1), 4))


@pytest.fixture
def _wide_resnets(monkeypatch):
    use_tiny_encoders(monkeypatch)
    for name, unit in (("resnet18", Basic), ("resnet50", Bottleneck)):
        monkeypatch.setitem(vision.VISION_ENCODERS, name, _wide_resnet(unit))


@pytest.mark.usefixtures("_wide_resnets", "in_float64")
@pytest.mark.parametrize(
    ("user", "item"),
    [("sasrec", "features"), ("sasrec", "semantic_ids"), *(("mf", item) for item in TINY)],
)
def test_losses_over_all_axes_are_those_of_one_device(user, item):
    """Each parameter is split by its rule.

    A pixel model of two encoders is that of `test_train_step.test_losses_are_those_of_one_device`.
    """
    config = tiny_config(f"user={user},item={item},dataset=custom")
    if "layers" in config.user:
        config.user.layers = 1  # others are split alike
    if "trainable" in config.item:
        config.item.update({"weights": "", "trainable": "all"})
    one, start = _losses(config, jax.devices()[:1])
    config.mesh.update(ALL_AXES)
    many, _ = _losses(config, jax.devices(), start)
    assert one.std() > 0
    np.testing.assert_allclose(many, one, rtol=1e-7)


@pytest.mark.usefixtures("in_float64")
def test_mf_of_the_papers_width_with_short_tables_trains_on_eight_devices():
    config = tiny_config("user=mf,item=id,dataset=custom")
    config.width = 4096
    one, start = _losses(config, jax.devices()[:1])
    config.mesh.fsdp = 8
    np.testing.assert_allclose(_losses(config, jax.devices(), start)[0], one, rtol=1e-7)
