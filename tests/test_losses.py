"""The registry of losses: a loss is a function and a line, and gets the options that it takes."""

import jax
import jax.numpy as jnp
import pytest

from pixelrec_jax.configs.keys import check_values
from pixelrec_jax.losses import LOSSES, build_loss, loss_options
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from tests.steps import run_steps
from tests.tiny import tiny_config


def squares(score, query, item, batch, *, epsilon):
    """A loss that is not in the package."""
    del score, batch
    return jnp.mean(jnp.square(query)) + jnp.mean(jnp.square(item)) + epsilon


@pytest.fixture
def _squares(monkeypatch):
    monkeypatch.setitem(LOSSES, "squares", squares)


@pytest.mark.usefixtures("_squares")
def test_a_loss_of_ones_own_trains(toy_dataset):
    config = tiny_config("user=sasrec,item=id,dataset=toy", toy_dataset)
    config.loss.name = "squares"
    config.optim.lr = 1e-2
    losses, _ = run_steps(build_experiment(config, devices=jax.devices()[:1]), 4)
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("_squares")
def test_a_loss_gets_the_options_that_it_takes():
    assert loss_options("squares") == ("epsilon",)
    assert loss_options("bpr") == ("epsilon", "single_row")
    config = tiny_config("user=sasrec,item=id,dataset=custom")
    config.loss.update({"name": "squares", "epsilon": 0.5})
    assert build_loss(config.loss).keywords == {"epsilon": 0.5}


@pytest.mark.usefixtures("_squares")
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "squeres"}, "unknown loss.name='squeres'; did you mean 'squares'"),
        (
            {"name": "squares", "single_row": True},
            r"loss\.single_row=True is given, but loss\.name=squares does not take it; leave it",
        ),
        ({"epsilon": -1.0}, r"loss\.epsilon=-1\.0; expected 0 or more"),
    ],
)
def test_options_of_another_loss_are_one_line(loss, message):
    config = tiny_config("user=sasrec,item=id,dataset=custom")
    config.loss.update(loss)
    with pytest.raises(UserError, match=message):
        check_values(config)
