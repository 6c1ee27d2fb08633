"""The reference's own numbers: loss, gradients, one AdamW step, scores, top 10, metrics.

tests/golden/trim.py says where the files come from, models.py how they map to models of ours.
Tolerance: 1e-5 of a tensor's largest magnitude; the top 10 is equal. It is wider where the file's
own rounding is as large (`Case.rounding`), or where Adam makes a step of rounding.
"""

from dataclasses import dataclass
from functools import cache, partial

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from pixelrec_jax.data.windows import training_windows
from pixelrec_jax.losses import build_loss
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.training.step import make_train_step
from pixelrec_jax.weights import partition
from tests import double
from tests.golden.models import CASES, TRAINED, Case
from tests.golden.reference import Golden
from tests.steps import place_state, start_state
from tests.tiny import use_tiny_encoders


def assert_close(actual, expected, name="", allowed=0.0):
    """`allowed` is what a tensor, or each element of it, may be off beyond the tolerance."""
    expected = np.asarray(expected)
    tolerance = 1e-5 * np.abs(expected).max() + allowed
    difference = np.abs(np.asarray(actual) - expected)
    worst = np.argmax(difference - tolerance)
    off, tolerance = (
        difference.flat[worst],
        np.broadcast_to(tolerance, difference.shape).flat[worst],
    )
    assert off <= tolerance, f"{name}: off by {off}, allowed {tolerance}"


def assert_trees_close(
    actual: dict, expected: dict, case: Case, allowed: dict, *, bound_of_noise: float
):
    """Asserts that tensors are close; those without a gradient have a bound instead.

    What PyTorch or XLA compute for a gradient that is zero is rounding noise, which Adam turns into
    a step of up to one learning rate in a random direction.
    """
    actual, expected = flatten_dict(actual), flatten_dict(expected)
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        if case.is_noise(path):
            assert np.abs(actual[path]).max() <= bound_of_noise
            assert np.abs(value).max() <= bound_of_noise
        else:
            assert_close(actual[path], value, "/".join(path), allowed.get(path, 0))


@pytest.fixture(scope="module")
def golden():
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_encoders(patch)
        yield cache(lambda name: Golden(name, CASES[name]))


@dataclass(frozen=True)
class Step:
    """The program's own train step from the reference's parameters.

    Attributes:
      losses: before and after it.
      gradient: of the loss before it, from Adam's first moment.
      params: after it.
    """

    losses: tuple[float, float]
    gradient: dict
    params: dict


@pytest.fixture(scope="module")
def stepped(golden):
    """The step of a case by name."""

    @cache
    def run(name: str) -> Step:
        case = golden(name)
        state = place_state(start_state(case.experiment, {"params": case.params0}), case.experiment)
        step = make_train_step(case.experiment)
        batch = make_global_arrays(case.batch, case.experiment.mesh, BATCH_SPEC)
        state, before = step(state, batch, case.experiment.resident)
        share = np.float32(1 - case.config.optim.b1)
        gradient = jax.tree.map(lambda x: np.asarray(x) / share, state.opt_state.mu)
        params = jax.device_get(state.params)
        _, after = step(state, batch, case.experiment.resident)
        return Step((float(before["loss"]), float(after["loss"])), gradient, params)

    return run


@pytest.mark.numerical
@pytest.mark.parametrize("name", TRAINED)
def test_gradients(golden, stepped, name):
    case = golden(name)
    expected = case.read(case.tensors("grad/"), case.trainable_template)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    allowed = {
        path: case.case.rounding.get("/".join(path), 0) * np.abs(value).max()
        for path, value in flatten_dict(expected).items()
    }
    actual = stepped(name).gradient
    assert_trees_close(actual, expected, case.case, allowed, bound_of_noise=1e-6 * largest)


def _step_bounds(case: Golden) -> dict[tuple[str, ...], np.ndarray]:
    """How far each element's first step changes with the rounding of its gradient.

    An element of a gradient is a sum of terms as large as the gradient's largest element, so a
    millionth of that is rounding. Adam's first step, g / (|g| + epsilon) of the learning rate,
    shows it where g is not much larger than epsilon.
    """
    optim, bounds = case.config.optim, {}
    gradient = flatten_dict(case.read(case.tensors("grad/"), case.trainable_template))
    for path, value in gradient.items():
        rounding = 1e-6 * np.abs(value).max()
        ahead, there, behind = (
            g / (np.abs(g) + optim.eps) for g in (value - rounding, value, value + rounding)
        )
        change = np.maximum(there - ahead, behind - there)
        bounds[path] = max(optim.lr, optim.visual_lr) * change
    return bounds


@pytest.mark.numerical
@pytest.mark.parametrize("name", TRAINED)
def test_losses_and_one_adamw_step(golden, stepped, name):
    case, step = golden(name), stepped(name)
    for number, loss in enumerate(step.losses):
        assert_close(loss, case.file[f"loss{number}"])
    # These start at zero or within one step of it.
    starts = [x for path, x in flatten_dict(case.params0).items() if case.case.is_noise(path)]
    bound = max((np.abs(x).max() for x in starts), default=0) + 1.01 * case.config.optim.lr
    allowed = _step_bounds(case)
    assert_trees_close(step.params, case.params1, case.case, allowed, bound_of_noise=bound)


@pytest.mark.numerical
@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.rounding])
def test_rounding_of_the_reference(golden, name):
    """The tolerance is wider by what float64 says, for tensors that need it and for no others."""
    case = golden(name)
    model, compute_loss = double.module(case.experiment.model), build_loss(case.config.loss)
    score = partial(model.apply, {}, method="score")
    trainable, frozen = double.cast(case.start)

    @jax.jit
    def loss(trainable):
        params = partition.merge(trainable, frozen)
        query, item = model.apply({"params": params}, case.batch, train=False)
        return compute_loss(score, query, item, case.batch)

    exact = jax.device_get(jax.grad(loss)(trainable))
    expected = flatten_dict(case.read(case.tensors("grad/"), case.trainable_template))
    found = {}
    for path, value in flatten_dict(exact).items():
        rounding = np.abs(expected[path] - value).max() / np.abs(value).max()
        if rounding > 2 / 3 * 1e-5 and not case.case.is_noise(path):
            found["/".join(path)] = rounding
    assert found == pytest.approx(case.case.rounding, rel=0.01)


@pytest.mark.numerical
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_item_vectors_scores_and_top_10(golden, name, devices):
    case = golden(name)
    evaluator = case.on(devices).evaluator
    catalog = evaluator.encode_catalog({"params": case.params1})
    if "feat" in case.file:
        vectors = np.asarray(catalog).reshape(-1, catalog.shape[-1])[: len(case.file["feat"])]
        assert_close(vectors[:, slice(*case.case.entries)], case.file["feat"])
    ranking, places, history = case.ranking(devices)
    top_ids, top_scores = ranking.top_ids[places, :10], ranking.top_scores[places, :10]
    if case.file.get("eval.0", np.empty(0)).ndim == 2:
        length = min(history.shape[1], case.file["eval.0"].shape[1])
        expected = case.file["eval.0"][:, :length]
        np.testing.assert_array_equal(history[places, :length], expected)
    np.testing.assert_array_equal(top_ids, case.file["topk"])
    scores = case.file["scores"]
    top = np.take_along_axis(scores, top_ids[: len(scores)], axis=1)
    # Relative to the largest score of all, masked ones aside.
    tolerance = 1e-5 * np.abs(scores[np.isfinite(scores)]).max()
    assert np.abs(top_scores[: len(scores)] - top).max() <= tolerance


@pytest.mark.numerical
@pytest.mark.parametrize("name", CASES)
def test_all_scores_with_history_masked(golden, name):
    case = golden(name)
    expected = case.file["scores"]
    ranking, places, _ = case.ranking(1)
    scores = np.full(expected.shape, -np.inf, np.float32)
    for row, place in zip(scores, places, strict=False):
        row[ranking.top_ids[place]] = ranking.top_scores[place]
    masked = np.isneginf(expected)
    np.testing.assert_array_equal(np.isneginf(scores), masked)
    assert_close(np.where(masked, 0, scores), np.where(masked, 0, expected))


@pytest.mark.numerical
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", CASES)
def test_validation_metrics(golden, name, devices):
    case = golden(name)
    metrics = case.on(devices).evaluator.metrics(case.ranking(devices)[0])["all"]
    for metric in ("recall@5", "recall@10", "ndcg@5", "ndcg@10"):
        # The reference rounds its metrics to seven decimals.
        assert round(metrics[metric]["value"], 7) == case.file[f"valid/{metric}"]


@pytest.mark.parametrize("name", ["SASRec", "MOSASRec"])
def test_training_windows_are_the_references_chunks(golden, name):
    case = golden(name)
    interactions = case.experiment.interactions
    windows = training_windows(case.experiment.split, size=11)
    ours = sorted(
        interactions.items[start : start + length].tolist()
        for start, length in zip(windows.start, windows.length, strict=True)
    )
    length = case.file["data/train_seq_len"]
    chunks = np.split(case.file["data/train_seq_flat"], np.cumsum(length)[:-1])
    assert ours == sorted(chunk.tolist() for chunk in chunks)
