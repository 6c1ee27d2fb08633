"""With every item encoder, losses on a mesh of all axes are those of one device, in float64.

In float32, six steps of Adam make 1e-5 of a rounding at a kink of a ReLU in some models; equal
losses in float32, with every user encoder, are shown by `test_learning`. In float64 a difference
is an error, but for 1e-9: of gradients that are zero but for rounding, Adam makes steps of that
size.

An error of a gradient or of an optimizer step shows in the loss of the next step, one of Adam's
moments in that of the step after: six steps are enough, at a rate of learning that moves
parameters as far as twenty would at the default one.
"""

from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
import pytest

from pixelrec_jax.items import vision
from pixelrec_jax.items.vision.resnet import Basic, Bottleneck, ResNet
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.state import TrainState
from tests import double
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import (
    ALL_AXES,
    ARCHITECTURES,
    TINY,
    interactions_of,
    random_store,
    tiny_config,
    use_tiny_encoders,
)

pytestmark = pytest.mark.slow


@dataclass
class Run:
    """The states of a run at its start and end, on the host, and its losses."""

    start: TrainState
    losses: np.ndarray
    end: TrainState


def _run(config, devices, start=None):
    config.optim.lr = config.optim.visual_lr = 5e-4
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 41, rng.integers(5, 13)) for _ in range(40)]
    interactions = interactions_of(sequences, 41)
    store = random_store(config.item, 41)
    experiment = build_experiment(config, devices=devices, interactions=interactions, store=store)
    experiment = replace(experiment, model=double.module(experiment.model))
    start = draw_state(experiment) if start is None else start
    losses, end = run_steps(experiment, 6, double.cast(place_state(start, experiment)))
    return Run(start, losses, jax.device_get(end))


def _long_resnet(unit):
    """With a stage that is split over "tensor"."""
    return replace(TINY["resnet50"], backbone=partial(ResNet, unit, (1, 1, 1), 4))


@pytest.fixture
def _long_resnets(monkeypatch):
    use_tiny_encoders(monkeypatch)
    for name, unit in (("resnet18", Basic), ("resnet50", Bottleneck)):
        monkeypatch.setitem(vision.VISION_ENCODERS, name, _long_resnet(unit))


@pytest.mark.usefixtures("_long_resnets", "in_float64")
@pytest.mark.parametrize(
    ("user", "item"),
    [("sasrec", "features"), ("sasrec", "semantic_ids")]
    + [("mf", item) for item in ARCHITECTURES if item != "vit_b16"],
)
def test_losses_over_all_axes_are_those_of_one_device(user, item):
    """Each parameter is split by its rule; running statistics and drop path are alike.

    SASRec with a plain ViT is a model of `test_train_step.test_losses_are_those_of_one_device`.
    """
    config = tiny_config(f"user={user},item={item},dataset=custom")
    if "layers" in config.user:
        config.user.layers = 1  # others are split alike
    if "trainable" in config.item:
        config.item.update({"weights": "", "trainable": "all"})
    if "drop_path" in config.item:
        config.item.drop_path = 0.5
    one = _run(config, jax.devices()[:1])
    config.mesh.update(ALL_AXES)
    many = _run(config, jax.devices(), one.start)
    assert one.losses.std() > 0
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-7)
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, many.end.model_state, one.end.model_state)


@pytest.mark.usefixtures("in_float64")
def test_mf_of_the_papers_width_with_short_tables_trains_on_eight_devices():
    config = tiny_config("user=mf,item=id,dataset=custom")
    config.width = 4096
    one = _run(config, jax.devices()[:1])
    config.mesh.fsdp = 8
    many = _run(config, jax.devices(), one.start)
    np.testing.assert_allclose(many.losses, one.losses, rtol=1e-7)
