"""The counted operations of a step are the model's own, however the step is run."""

import jax
import numpy as np
import pytest

from pixelrec_jax.parallel.sharding import BATCH_SPEC, shapes
from pixelrec_jax.training import flops
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.flops import StepFlops
from pixelrec_jax.training.state import state_template
from pixelrec_jax.training.train import make_train_step
from tests.tiny import interactions_of, random_store, tiny_config, use_tiny_encoders

ITEMS = 40


def _experiment(words, *, devices=1, **item):
    config = tiny_config(f"{words},dataset=toy")
    config.item.update(item)
    rng = np.random.default_rng(0)
    data = interactions_of([rng.integers(1, ITEMS, 9) for _ in range(60)], ITEMS)
    store = random_store(config.item, ITEMS)
    return build_experiment(config, devices=jax.devices()[:devices], interactions=data, store=store)


def _batch(experiment, index=0):
    return shapes(experiment.batches[index], experiment.mesh, BATCH_SPEC)


def _flops(experiment):
    return StepFlops(experiment, make_train_step)(_batch(experiment))


def _as_run(experiment):
    step, state = make_train_step(experiment), state_template(experiment)
    lowered = step.lower(state, _batch(experiment), experiment.resident)
    return lowered.cost_analysis()["flops"]


def test_rematerialisation_is_not_counted(monkeypatch):
    use_tiny_encoders(monkeypatch)
    words = "user=sasrec,item=vit_toy"
    whole, remat = (_experiment(words, trainable="all", remat=remat) for remat in (False, True))
    assert _as_run(remat) > 1.1 * _as_run(whole)  # it is work
    assert _flops(remat) == _flops(whole) == _as_run(whole)


def test_a_vision_encoder_costs_what_its_matrix_products_do(monkeypatch):
    use_tiny_encoders(monkeypatch)
    experiments = [
        _experiment("user=mf,item=vit_toy", trainable=trainable) for trainable in ("none", "all")
    ]
    frozen, trained = map(_flops, experiments)
    images = _batch(experiments[0]).items.id.size
    width, mlp, depth, tokens = 16, 32, 2, 5  # 16 pixels in patches of 8, and the class token
    products = tokens * (4 * width * width + 2 * width * mlp) + 2 * tokens * tokens * width
    backward = 2 * 2 * images * depth * products  # to weights and to inputs, each as the forward
    assert backward < trained - frozen < 1.5 * backward  # norms, softmax and Adam beside it


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
