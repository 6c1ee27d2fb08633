"""The counted operations of a step are the model's own, however the step is run."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from pixelrec_jax.items import vision
from pixelrec_jax.items.vision.vit import VisionTransformer
from pixelrec_jax.parallel.sharding import BATCH_SPEC, shapes
from pixelrec_jax.training import flops
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.flops import StepFlops
from pixelrec_jax.training.frozen_blocks import FrozenBlocks
from pixelrec_jax.training.state import state_template
from pixelrec_jax.training.step import make_train_step
from tests.tiny import (
    ArrayStore,
    interactions_of,
    random_store,
    tiny_config,
    use_tiny_encoders,
)

ITEMS = 40


def _experiment(words, *, devices=1, **item):
    config = tiny_config(f"{words},dataset=toy")
    config.item.update(item)
    rng = np.random.default_rng(0)
    data = interactions_of([rng.integers(1, ITEMS, 9) for _ in range(60)], ITEMS)
    store = random_store(config.item, ITEMS, size=config.item.get("image_size", 0))
    return build_experiment(config, devices=jax.devices()[:devices], interactions=data, store=store)


def _batch(experiment, index=0):
    return shapes(experiment.batches[index], experiment.mesh, BATCH_SPEC)


def _flops(experiment):
    return StepFlops(experiment, make_train_step)(_batch(experiment))


def _as_run(experiment, platform="cpu"):
    step, state = make_train_step(experiment), state_template(experiment)
    traced = step.trace(state, _batch(experiment), experiment.resident)
    return traced.lower(lowering_platforms=(platform,)).cost_analysis()["flops"]


def test_rematerialisation_is_not_counted(monkeypatch):
    use_tiny_encoders(monkeypatch)
    words = "user=sasrec,item=vit_toy"
    whole, remat = (_experiment(words, trainable="all", remat=remat) for remat in (False, True))
    assert _as_run(remat) > 1.1 * _as_run(whole)  # it is work
    assert _flops(remat) == _flops(whole) == _as_run(whole)


def test_a_step_from_activations_costs_what_comes_after_the_boundary(monkeypatch):
    use_tiny_encoders(monkeypatch)
    streaming = _experiment("user=mf,item=clip_vit_b32", trainable="last:1", image_size=32)
    frozen = FrozenBlocks(streaming)
    variables = frozen.variables_in(state_template(streaming).variables)
    rows = frozen.activations(variables)
    store = ArrayStore(np.zeros(rows.shape, rows.dtype), "activation")
    cached = _flops(streaming.reading(store))
    images, whole = _batch(streaming).items.id.size, _flops(streaming)
    below = images * frozen.lower(variables).cost_analysis()["flops"]
    assert cached < 0.75 * whole
    assert cached == pytest.approx(whole - below, rel=0.05)
    line = frozen.saving(state_template(streaming).variables, whole, images)
    assert f"up to block_1 are {below / whole:.0%} of the operations of a step" in line
    streaming = _experiment("user=mf,item=clip_vit_b32", trainable="all", image_size=32)
    assert not FrozenBlocks(streaming).saving(state_template(streaming).variables, whole, images)


def _use_transformer(monkeypatch, **sizes):
    """Gives vit_toy these sizes."""
    spec = replace(vision.VISION_ENCODERS["vit_toy"], backbone=partial(VisionTransformer, **sizes))
    monkeypatch.setitem(vision.VISION_ENCODERS, "vit_toy", spec)


def test_a_vision_encoder_costs_what_its_matrix_products_do(monkeypatch):
    width, mlp, tokens = 128, 256, 5  # 16 pixels in patches of 8, and the class token
    sizes = {"width": width, "depth": 1, "heads": 2, "patch": 8, "mlp": mlp}
    _use_transformer(monkeypatch, **sizes)
    experiments = [
        _experiment("user=mf,item=vit_toy", image_size=16, trainable=trainable)
        for trainable in ("none", "all")
    ]
    frozen, trained = map(_flops, experiments)
    images = _batch(experiments[0]).items.id.size
    products = tokens * (4 * width * width + 2 * width * mlp) + 2 * tokens * tokens * width
    backward = 2 * 2 * images * products  # to weights and to inputs, each as the forward
    # Beside it: the stem and norms, softmax, GELU and Adam, each small for this width.
    assert backward < trained - frozen < 1.25 * backward


def test_attention_costs_what_its_plain_products_do(monkeypatch):
    """What grows with the square of the tokens and not with the heads is six matrix products."""
    side, width = 8, 16
    tokens = np.array([1 + n * n for n in (1, 2, 4)])

    def of_squares(heads):
        """The coefficient of tokens squared, and the number of images, of three sizes of image."""
        sizes = {"width": width, "depth": 1, "heads": heads, "patch": side, "mlp": 32}
        _use_transformer(monkeypatch, **sizes)
        counted = []
        for size in (side, 2 * side, 4 * side):
            experiment = _experiment("user=mf,item=vit_toy", trainable="all", image_size=size)
            counted.append(_flops(experiment))
        return np.polyfit(tokens, counted, 2)[0], _batch(experiment).items.id.size

    (one, images), (two, _) = of_squares(1), of_squares(2)
    softmax = two - one  # of one more head, of as many numbers
    # Scores and their use, and for each the gradients of both operands.
    assert one - softmax == pytest.approx(images * 6 * 2 * width, rel=1e-3)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_step_counts_alike_on_every_platform(monkeypatch, platform):
    """No platform has attention, or anything else, in a call whose operations are not seen."""
    use_tiny_encoders(monkeypatch)
    # Half of the work on 65 tokens is attention; random numbers are made otherwise elsewhere.
    experiment = _experiment("user=mf,item=vit_toy", trainable="all", image_size=64)
    assert _as_run(experiment, platform) == pytest.approx(_flops(experiment), rel=0.01)


def test_every_round_of_a_loop_is_counted():
    experiment = _experiment("user=gru4rec,item=id")
    config = experiment.config
    hidden, length = config.user.expansion * config.width, config.task.history_length
    product = 2 * config.train.batch_size * hidden * 3 * hidden
    per_round = 3 * product  # the recurrent product and its two gradients
    missing = _flops(experiment) - _as_run(experiment)
    assert (length - 1) * per_round < missing < 1.5 * (length - 1) * per_round


@pytest.mark.parametrize("words", ["user=sasrec,item=id", "user=lightgcn,item=id"])
def test_the_whole_mesh_is_counted_once(words):
    one, eight = (_experiment(words, devices=devices) for devices in (1, 8))
    batch = _batch(one)
    assert _flops(one) > 0
    # Shards have slots of their own: the same rows in a batch of one shard.
    resharded = jax.tree.map(lambda x: x.update(sharding=_on(eight)), batch)
    assert StepFlops(eight, make_train_step)(resharded) == pytest.approx(
        StepFlops(one, make_train_step)(batch), rel=0.1
    )


def _on(experiment):
    return jax.sharding.NamedSharding(experiment.mesh, jax.sharding.PartitionSpec())


def test_a_shape_is_counted_once(monkeypatch):
    experiment = _experiment("user=sasrec,item=id")
    traced = []
    count = flops._operations
    monkeypatch.setattr(flops, "_operations", lambda lowered: traced.append(1) or count(lowered))
    counter = StepFlops(experiment, make_train_step)
    first = counter(_batch(experiment))
    assert counter(_batch(experiment, 1)) == first
    assert len(traced) == 1
    wider = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((x.shape[0], 2 * x.shape[1], *x.shape[2:]), x.dtype),
        _batch(experiment),
    )
    assert counter(wider) > first
    assert len(traced) == 2
