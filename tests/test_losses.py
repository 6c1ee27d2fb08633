"""The registry of losses: a loss is a function and a line, and declares the options it takes."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.configs.base import shared_keys
from pixelrec_jax.configs.checks import check_values, meaning
from pixelrec_jax.data.types import Batch, Items
from pixelrec_jax.losses import LOSSES, bpr, build_loss
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import Number, Option, keys_of
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.users.encoder import dot_product
from tests.steps import run_steps
from tests.tiny import tiny_config


def squares(
    score,
    query,
    item,
    batch,
    *,
    margin: Annotated[float, Option("what every square is above", Number(0))] = 0.25,
):
    """A loss that is not in the package."""
    del score, batch
    return jnp.mean(jnp.square(query)) + jnp.mean(jnp.square(item)) + margin


@pytest.fixture
def _squares(monkeypatch):
    monkeypatch.setitem(LOSSES, "squares", squares)


@pytest.mark.usefixtures("_squares")
def test_a_loss_of_ones_own_trains(toy_dataset):
    config = tiny_config("user=sasrec,item=id,dataset=toy", toy_dataset)
    config.loss.update({"name": "squares", "margin": 3.0})
    config.optim.lr = 1e-2
    losses, _ = run_steps(build_experiment(config, devices=jax.devices()[:1]), 4)
    assert losses[0] > losses[-1] > 3


@pytest.mark.usefixtures("_squares")
def test_a_loss_gets_the_options_that_it_declares():
    config = tiny_config("user=sasrec,item=id,dataset=custom")
    assert config.loss.margin == 0.25
    config.loss.update({"name": "squares", "margin": 0.5})
    check_values(config)
    assert build_loss(config.loss).keywords == {"margin": 0.5}
    assert meaning("loss.margin") == "what every square is above"
    config.loss.name = "bpr"
    config.loss.margin = 0.25
    assert build_loss(config.loss).keywords.keys() == keys_of(bpr).keys()


def test_a_single_row_is_the_first_that_is_not_padding():
    """A window that is shorter than a history starts with rows of padding."""
    rng = np.random.default_rng(0)
    user, slots = np.array([[0, 0, 3], [4, 5, 0]]), rng.integers(1, 6, (2, 3, 2))
    batch = Batch(
        items=Items(id=np.tile(np.arange(6), (2, 1))),
        user=user,
        history=slots,
        positive=slots[..., :1],
        negative=slots[..., 1:, None],
        weight=(user > 0)[..., None].astype(np.float32),
    )
    query, item = (jnp.asarray(rng.normal(size=(2, n, 4)), jnp.float32) for n in (3, 6))
    query = query[:, :, None]
    loss = bpr(dot_product, query, item, batch, single_row=True)
    alone = jax.tree.map(lambda x: x[:1, 2:], batch).replace(items=Items(id=batch.items.id[:1]))
    expected = bpr(dot_product, query[:1, 2:], item[:1], alone)
    assert loss == pytest.approx(float(expected), rel=1e-6)


def test_options_of_losses_that_are_not_registered_are_not_in_a_config():
    config = tiny_config("user=sasrec,item=id,dataset=custom")
    assert "margin" not in config.loss


@pytest.mark.usefixtures("_squares")
def test_a_run_from_before_a_loss_was_added_is_continued():
    config = tiny_config("user=sasrec,item=id,dataset=custom")
    del config.loss["margin"]
    check_values(config)
    config.loss.name = "squares"
    with pytest.raises(UserError, match=r"the config lacks loss\.margin"):
        check_values(config)


def test_two_losses_cannot_declare_an_option_in_two_ways(monkeypatch):
    def other(*arguments, epsilon: Annotated[float, Option("another", Number(0))] = 0.0):
        raise AssertionError

    monkeypatch.setitem(LOSSES, "other", other)
    with pytest.raises(AssertionError, match=r"loss\.epsilon of other is declared in two ways"):
        shared_keys()


def test_an_argument_without_an_option_is_not_taken():
    def undeclared(*arguments, margin: float = 0.0):
        raise AssertionError

    with pytest.raises(AssertionError, match="takes margin, which is not annotated"):
        keys_of(undeclared)


@pytest.mark.usefixtures("_squares")
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"name": "squeres"}, "unknown loss.name='squeres'; did you mean 'squares'"),
        (
            {"name": "squares", "single_row": True},
            r"loss\.single_row=True is given, but loss\.name=squares does not take it; leave it at "
            r"False, or take loss\.name=bpr",
        ),
        (
            {"margin": 1.0},
            r"loss\.margin=1\.0 is given, but loss\.name=bpr does not take it; leave it at 0\.25",
        ),
        ({"epsilon": -1.0}, r"loss\.epsilon=-1\.0; expected 0 or more"),
        ({"name": "squares", "margin": -1.0}, r"loss\.margin=-1\.0; expected 0 or more"),
        ({"name": "squares", "margn": 1.0}, r"no key 'loss\.margn'; did you mean 'loss\.margin'"),
    ],
)
def test_a_wrong_option_is_one_line(loss, message):
    config = tiny_config("user=sasrec,item=id,dataset=custom")
    config.loss.update(loss)
    with pytest.raises(UserError, match=message) as error:
        check_values(config)
    assert "\n" not in str(error.value)


def test_the_shipped_config_has_the_options_of_its_loss_and_negatives():
    config = flatten(tiny_config("user=sasrec,item=id,dataset=custom").to_dict())
    chosen = {
        key: value for key, value in config.items() if key.startswith(("loss.", "negatives."))
    }
    assert chosen == {
        "loss.name": "bpr",
        "loss.epsilon": 0.0,
        "loss.single_row": False,
        "negatives.name": "uniform",
        "negatives.count": 1,
    }
