"""Stochastic depth in the architectures that have it: which paths of which items, and when."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from transformers import BeitConfig, BeitModel, SwinConfig, SwinModel

from pixelrec_jax.items.vision import VISION_ENCODERS
from pixelrec_jax.items.vision.layers import Context, DropPath
from tests.items.vision import parity
from tests.items.vision.cases import SWIN_B, loaded

RATE = 0.5  # of the last path
# Rates of the two paths of each of BEiT's blocks, and of the path of each of Swin's layers.
RATES = {"beit": np.repeat(np.linspace(0, RATE, 2), 2), "swin": np.linspace(0, RATE, 4)}
each_architecture = pytest.mark.parametrize("name", RATES)


@partial(jax.jit, static_argnames="backbone")
def _train(backbone: nn.Module, variables: dict, image: jax.Array, item: jax.Array):
    return backbone.apply(
        variables,
        image,
        Context(train=True, item=item),
        rngs={"dropout": jax.random.key(0)},
        capture_intermediates=lambda module, _: isinstance(module, DropPath),
        mutable=["intermediates"],
    )


def train(name: str, item: np.ndarray, *blocks: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """One image for every item in a training step of these blocks, by default of all.

    Returns:
      The outputs, and of every path whether an item kept it.
    """
    this = loaded(name)
    image = np.repeat(parity.random_image(this.case.size, count=1), len(item), axis=0)
    backbone = this.case.backbone
    backbone = backbone.clone(drop_path=RATE, train_mode_blocks=blocks or backbone.blocks)
    output, captured = _train(backbone, this.backbone.variables, image, item)
    paths = flatten_dict(captured["intermediates"]).values()
    return output, [np.abs(x).reshape(len(item), -1).max(axis=1) > 0 for (x,) in paths]


@pytest.mark.numerical
@each_architecture
def test_an_item_loses_the_same_paths_wherever_it_lies(name):
    item = np.arange(200)
    output, kept = train(name, item)
    order = np.random.default_rng(0).permutation(200)
    again, of_order = train(name, item[order])
    parity.assert_close(again, output[order])
    np.testing.assert_array_equal(of_order, [x[order] for x in kept])
    for path, rate in zip(kept, RATES[name], strict=True):
        assert path.mean() == pytest.approx(1 - rate, abs=0.14)  # four standard errors
    # Paths are on their own: an item may lose either of the last two and keep the other.
    assert (kept[-1] & ~kept[-2]).any()
    assert (kept[-2] & ~kept[-1]).any()
    assert len(np.unique(output[:, 0].round(3))) > 3


@pytest.mark.numerical
@each_architecture
def test_evaluation_and_frozen_blocks_drop_nothing(name):
    this = loaded(name)
    image = parity.random_image(this.case.size, count=1)
    expected = this.backbone(image)
    parity.assert_close(this.backbone(image, drop_path=RATE), expected)
    item = np.arange(200)
    # BEiT's first block has a rate of zero.
    trained = ("stem", "block_0", "norm") if name == "beit" else ("stem", "norm")
    output, kept = train(name, item, *trained)
    parity.assert_close(output, np.repeat(expected, len(item), axis=0))
    assert np.all(kept)
    assert np.abs(train(name, item)[0] - expected).max() > 0.01


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("beit_b16", lambda: BeitModel(BeitConfig(use_relative_position_bias=True))),
        ("swin_t", lambda: SwinModel(SwinConfig())),
        ("swin_b", lambda: SwinModel(SwinConfig(**SWIN_B))),
    ],
)
def test_published_rates_are_those_of_transformers(name, make):
    ours = []

    def record(run, args, kwargs, context):
        if isinstance(context.module, DropPath):
            ours.append(context.module.rate)
        return run(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
    with nn.intercept_methods(record):
        jax.eval_shape(VISION_ENCODERS[name].backbone().init, jax.random.key(0), image)
    with torch.device("meta"):
        module = make()
    if name == "beit_b16":
        theirs = [x.drop_path for x in module.layers for _ in range(2)]  # both paths have one rate
    else:
        theirs = [x.drop_path for stage in module.encoder.layers for x in stage.blocks]
    assert ours == pytest.approx([getattr(x, "drop_prob", 0) for x in theirs])
