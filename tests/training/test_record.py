"""What is recorded of training steps, and when it is fetched from the devices."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training import train
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.training.record import check_finite
from tests.steps import draw_state
from tests.tiny import tiny_config


def _config(dataset, **changes):
    config = tiny_config("user=mf,item=id,dataset=toy", dataset)
    config.train.epochs = 1
    config.train.update(changes)
    return config


def _watch_steps(monkeypatch, before=lambda state: None, after=lambda state, metrics: None):
    """Calls `before` and `after` around each step that the training loop dispatches."""
    make = train.make_train_step

    def make_watched(experiment):
        step = make(experiment)

        def watched(state, *inputs):
            before(state)
            state, metrics = step(state, *inputs)
            after(state, metrics)
            return state, metrics

        watched.trace = step.trace  # its operations are counted
        return watched

    monkeypatch.setattr(train, "make_train_step", make_watched)


def test_metrics_are_fetched_after_the_next_step_is_dispatched(toy_dataset, tmp_path, monkeypatch):
    events, dispatched = [], []

    def dispatch(_, metrics):
        dispatched.append(metrics)
        events.append(("dispatch", len(dispatched)))

    def fetch(tree, get=jax.device_get):
        events.extend(("fetch", n) for n, metrics in enumerate(dispatched, 1) if tree is metrics)
        return get(tree)

    _watch_steps(monkeypatch, after=dispatch)
    monkeypatch.setattr(jax, "device_get", fetch)
    train.train_and_evaluate(_config(toy_dataset, log_every=1, checkpoint_every=1000), tmp_path)
    last = len(dispatched)
    assert last >= 3
    expected = [("dispatch", 1)]
    for step in range(2, last + 1):
        expected += [("dispatch", step), ("fetch", step - 1)]
    assert events == [*expected, ("fetch", last)]


@pytest.mark.numerical
@pytest.mark.parametrize("log_every", [1, 2])
def test_recorded_norms_are_those_of_what_the_step_changed(
    toy_dataset, tmp_path, monkeypatch, log_every
):
    tables, norms = [], []

    def before(state):
        # Copies: the step takes the memory of its input.
        tables.append([np.array(x, np.float64) for x in jax.tree.leaves(state.trainable)])

    def after(state, _):
        now = [np.array(x, np.float64) for x in jax.tree.leaves(state.trainable)]
        squares = [np.sum((new - old) ** 2) for new, old in zip(now, tables[-1], strict=True)]
        norms.append(np.sqrt(sum(squares)))

    _watch_steps(monkeypatch, before, after)
    train.train_and_evaluate(_config(toy_dataset, log_every=log_every), tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = len(norms)
    assert last >= 3
    steps = [record["step"] for record in records]
    assert steps == sorted({*range(log_every, last + 1, log_every), last})
    recorded = [record["train/update_norm"] for record in records]
    np.testing.assert_allclose(recorded, [norms[step - 1] for step in steps], rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("part", ["trainable", "model_state", "opt_state"])
def test_a_parameter_that_is_not_finite_is_refused_beside_a_finite_loss(toy_dataset, part, value):
    state = draw_state(build_experiment(_config(toy_dataset), devices=jax.devices()[:1]))
    state = state.replace(model_state={"batch_stats": {"mean": np.zeros(3, np.float32)}})
    metrics = {"loss": jnp.float32(1)}
    check_finite(metrics, state, 7, str)
    leaves, structure = jax.tree.flatten(getattr(state, part))
    last = max(n for n, leaf in enumerate(leaves) if leaf.ndim)
    leaves[last] = leaves[last].copy()
    leaves[last].flat[-1] = value
    broken = state.replace(**{part: structure.unflatten(leaves)})
    found = (
        "a moment of the optimizer is" if part == "opt_state" else "a parameter or its square is"
    )
    with pytest.raises(UserError, match=f"{found} not finite after step 7; lower optim.lr"):
        check_finite(metrics, broken, 7, str)
    with pytest.raises(UserError, match=f"the loss is {value} at step 7, in a batch of 2 users"):
        check_finite({"loss": jnp.float32(value)}, state, 7, lambda: "2 users")


def test_a_parameter_whose_square_is_not_finite_is_refused(toy_dataset):
    """With 1e37 the loss of the step was still finite, that of the next one cannot be."""
    state = draw_state(build_experiment(_config(toy_dataset), devices=jax.devices()[:1]))
    state.trainable["item_encoder"]["table"].flat[3] = 1e37
    with pytest.raises(UserError, match="a parameter or its square is not finite after step 7"):
        check_finite({"loss": jnp.float32(1)}, state, 7, str)


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_loss_that_is_not_finite_is_told_with_the_batch_before_a_second_step_is_done(
    toy_dataset, tmp_path, monkeypatch, log_every
):
    batches = []

    def spoil(_, metrics):
        batches.append(len(batches) + 1)
        if len(batches) == 3:
            metrics["loss"] = jnp.float32(np.nan)

    _watch_steps(monkeypatch, after=spoil)
    config = _config(toy_dataset, log_every=log_every, checkpoint_every=1000, epochs=2)
    with pytest.raises(UserError) as error:
        train.train_and_evaluate(config, tmp_path)
    assert len(batches) == 4  # the next one was dispatched already
    told = re.search(
        r"^the loss is nan at step 3, in a batch of (\d+) users \((.*), …\) and "
        r"(\d+) items \((.*), …\); lower optim.lr",
        str(error.value),
    )
    experiment = build_experiment(config)
    batch, data = experiment.batches[2], experiment.interactions
    users, items = (
        np.unique(batch.user[batch.user > 0]),
        np.unique(batch.items.id[batch.items.id > 0]),
    )
    assert (int(told[1]), int(told[3])) == (len(users), len(items))
    assert told[2].split(", ") == [data.user_ids()[int(user) - 1] for user in users[:5]]
    assert told[4].split(", ") == [data.item_ids()[int(item) - 1] for item in items[:5]]
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
