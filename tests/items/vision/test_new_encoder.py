"""A vision encoder of one's own is a file, a line of the registry and an entry of the configs."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from pixelrec_jax import items
from pixelrec_jax.configs import checks, pixelrec
from pixelrec_jax.configs.checks import meaning
from pixelrec_jax.configs.encoders import ENCODERS, EncoderSettings
from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.backbone import Backbone, Step
from pixelrec_jax.items.vision.blocks import POOL
from pixelrec_jax.items.vision.layers import MapPool
from pixelrec_jax.items.vision.spec import EncoderSpec
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import Number, Option
from pixelrec_jax.training import train
from tests.tiny import tiny_config


class Gamma(nn.Module):
    """Powers of the pixels, mixed."""

    width: int
    exponent: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        return nn.Dense(self.width, dtype=self.dtype)(jnp.abs(image) ** self.exponent)


class Colours(Backbone):
    """The mean colour of an image."""

    width: int
    exponent: float = Option("power that pixels are raised to", Number(above=0)).field(1.0)

    @nn.nowrap
    def steps(self) -> tuple[Step, ...]:
        return (
            Step("gamma", partial(Gamma, self.width, self.exponent, self.dtype)),
            Step(POOL, partial(MapPool, self.pool)),
        )


@pytest.fixture
def _colours(monkeypatch):
    spec = EncoderSpec(partial(Colours, width=8), multiple=1, pools=("mean", "tokens"))
    monkeypatch.setitem(VISION_ENCODERS, "colours", spec)
    settings = EncoderSettings(weights="", trainable="all", options={"exponent": 2.0})
    monkeypatch.setitem(ENCODERS, "colours", settings)
    # At import these are made from the two registries.
    known = (*items.ITEM_ENCODERS, "colours")
    for module in (items, checks):
        monkeypatch.setattr(module, "ITEM_ENCODERS", known)
    monkeypatch.setattr(pixelrec, "ITEMS", (*pixelrec.ITEMS, "colours"))


def config_of(dataset):
    return tiny_config("user=mf,item=colours,dataset=toy", dataset)


@pytest.mark.usefixtures("_colours")
def test_it_trains_and_is_ranked(toy_dataset, tmp_path):
    config = config_of(toy_dataset)
    assert config.item.exponent == 2.0
    encoder = items.build_item_encoder(config.item, num_items=5, mask_item=None, width=16)
    assert encoder.backbone.exponent == 2.0
    config.train.epochs = 1
    result = train.train_and_evaluate(config, tmp_path / "run")
    assert result["best_step"] > 0
    assert result["test"]["model"]["all"]["recall@10"]["value"] > 0


@pytest.mark.usefixtures("_colours")
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("exponent", 0.0, r"item\.exponent=0\.0; expected more than 0"),
        ("exponant", 1.0, r"no key 'item\.exponant'; did you mean 'item\.exponent'"),
        ("drop_path", 0.1, r"item\.name=colours does not take item\.drop_path"),
        ("pool", "cls", r"item\.pool='cls'; expected mean or tokens"),
        ("trainable", "gama", r"unknown block 'gama'; did you mean 'gamma'"),
        ("name", "colors", "unknown item encoder 'colors'; did you mean 'colours'"),
    ],
)
def test_what_it_does_not_take_is_one_line(toy_dataset, tmp_path, key, value, message):
    config = config_of(toy_dataset)
    config.item[key] = value
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config, tmp_path / "run")


@pytest.mark.usefixtures("_colours")
def test_its_option_has_a_meaning():
    assert (
        meaning("item.exponent")
        == Colours.__dataclass_fields__["exponent"].metadata["option"].meaning
    )
