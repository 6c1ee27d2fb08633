"""A source of negatives of one's own is a class and a line, and declares the options it takes."""

from typing import Annotated

import jax
import numpy as np
import pytest

from pixelrec_jax.configs.checks import check_values, meaning
from pixelrec_jax.data.negatives import NEGATIVES
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import Option, Whole
from pixelrec_jax.training.experiment import build_experiment
from tests.tiny import tiny_config


class Fixed:
    """Compares every target with one item."""

    def __init__(
        self, task, *, item: Annotated[int, Option("the item that is compared", Whole())] = 1
    ):
        assert item < task.split.interactions.num_items
        self.item = item

    def draw(self, rows, rng):
        return np.where(rows.weight[..., None] > 0, self.item, 0).astype(np.int32)


@pytest.fixture
def _fixed(monkeypatch):
    monkeypatch.setitem(NEGATIVES, "fixed", Fixed)


def fixed_config(dataset="", **options):
    config = tiny_config("user=sasrec,item=id,dataset=custom", dataset)
    config.negatives.update({"name": "fixed", **options})
    return config


@pytest.mark.usefixtures("_fixed")
def test_it_draws_with_its_own_option(toy_dataset):
    config = fixed_config(toy_dataset)
    assert (config.negatives.item, config.negatives.count) == (1, 1)
    config.negatives.item = 7
    batch = build_experiment(config, devices=jax.devices()[:1]).batches[0]
    items = batch.items.id[0][batch.negative]
    np.testing.assert_array_equal(items, np.where(batch.weight[..., None] > 0, 7, 0))
    assert meaning("negatives.item") == "the item that is compared"


@pytest.mark.usefixtures("_fixed")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"item": 0}, r"negatives\.item=0; expected 1 or more"),
        ({"itme": 3}, r"no key 'negatives\.itme'; did you mean 'negatives\.item'"),
        (
            {"count": 3},
            r"negatives\.count=3 is given, but negatives\.name=fixed does not take it; leave it at "
            r"1, or take negatives\.name=uniform",
        ),
        (
            {"name": "uniform", "item": 3},
            r"negatives\.item=3 is given, but negatives\.name=uniform does not take it",
        ),
        ({"name": "fixd"}, r"unknown negatives\.name='fixd'; did you mean 'fixed'"),
    ],
)
def test_a_wrong_option_is_one_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        check_values(fixed_config(**options))
    assert "\n" not in str(error.value)
