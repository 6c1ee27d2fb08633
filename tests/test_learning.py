"""Every recommender learns from a small catalogue, on one device as on a mesh of all axes."""

from dataclasses import dataclass
from functools import cache

import jax
import numpy as np
import polars as pl
import pytest

from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.evaluation.evaluate import Ranking
from pixelrec_jax.ingest import toy
from pixelrec_jax.parallel.sharding import BATCH_SPEC, make_global_arrays
from pixelrec_jax.training.experiment import Experiment, build_experiment
from pixelrec_jax.training.initialize import init_state
from pixelrec_jax.training.state import TrainState
from pixelrec_jax.training.step import make_train_step
from pixelrec_jax.users import USER_ENCODERS
from tests.steps import place_state
from tests.tiny import ALL_AXES, ArrayStore, interactions_of, items_of, tiny_config

USERS, ITEMS = 800, 200
FEW = 15  # steps that are also done on eight devices
STEPS = 160  # that learn enough, but for these:
STEPS_OF = {"acf": 100, "bert4rec": 420, "srgnn": 320, "visrank": 0}
ITEM_OF = {"vbpr": "id+features"}  # others use the first one that they take
# At their default settings BERT4Rec and SR-GNN learn as much, but slowly. At first, BERT4Rec's
# states hold little besides the mask and its place, and SR-GNN's are nearly equal for all users.
SETTINGS_OF = {
    "bert4rec": {"user": {"init_std": 0.2}, "item": {"init_std": 0.2}},
    "srgnn": {"optim": {"lr": 0.02}},
}


@cache
def toy_catalogue() -> tuple[Interactions, ArrayStore]:
    """A toy catalogue in memory, with features: colours at the corners and centre of covers."""
    of_items, of_users, of_covers = np.random.default_rng(0).spawn(3)
    items = toy.draw_catalog(of_items, ITEMS)
    rows = toy.draw_interactions(of_users, items, USERS)
    rows = rows.with_columns(pl.col("item_id").str.slice(1).cast(int) + 1)
    sequences = rows.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]
    interactions = interactions_of([s.to_numpy() for s in sequences], ITEMS + 1)
    covers = toy.draw_covers(of_covers, items, 16) / np.float32(255)
    feature = np.concatenate([covers[:, ::15, ::15], covers[:, 7:9, 7:9]], axis=-1)
    feature -= feature.mean(axis=(0, 1, 2))
    padding = np.zeros_like(feature[:1])
    return interactions, ArrayStore(np.concatenate([padding, feature]), "feature")


def build(user: str, devices: int) -> Experiment:
    """A recommender of width 32 that learns fast."""
    item = ITEM_OF.get(user, items_of(user)[0])
    config = tiny_config(f"user={user},item={item},dataset=toy")
    config.width = 32
    if "dropout" in config.user:
        config.user.dropout = 0.1  # the same random numbers must fall on the same rows
    if "layers" in config.user:
        config.user.layers = 1  # others are split alike
    if devices > 1:
        config.mesh.update(ALL_AXES)
    config.negatives.count = 8
    config.train.batch_size = 64
    config.optim.update({"warmup_steps": 0, "weight_decay": 0.0, "visual_weight_decay": 0.0})
    config.optim.lr = config.optim.visual_lr = 0.01
    config.eval.batch_size = USERS
    config.eval.encode_batch_size = ITEMS + 2
    for section, values in SETTINGS_OF.get(user, {}).items():
        config[section].update(values)
    interactions, features = toy_catalogue()
    return build_experiment(
        config,
        devices=jax.devices()[:devices],
        interactions=interactions,
        store=None if item == "id" else features,
    )


@dataclass
class Run:
    """The state at step 0 on the host, losses of all steps, and rankings of the test split after
    few of them and after all.
    """

    experiment: Experiment
    start: TrainState
    losses: np.ndarray
    early: Ranking
    late: Ranking


def train(user: str, *, devices: int, steps: int, start: TrainState | None = None) -> Run:
    """Trains by the program's own step on its own batches."""
    experiment = build(user, devices)
    rank = experiment.evaluator.rank
    state = init_state(experiment) if start is None else place_state(start, experiment)
    start, losses, early = jax.device_get(state), [], None
    step = make_train_step(experiment)
    for index in range(steps):
        batch = make_global_arrays(experiment.batches[index], experiment.mesh, BATCH_SPEC)
        state, metrics = step(state, batch, experiment.resident)
        losses.append(metrics["loss"])
        if index + 1 == FEW:
            early = rank(state.variables, "test")
    late = rank(state.variables, "test")
    return Run(experiment, start, np.array(jax.device_get(losses)), early or late, late)


@cache
def learned(user: str) -> Run:
    return train(user, devices=1, steps=STEPS_OF.get(user, STEPS))


@pytest.mark.parametrize("user", [name for name in USER_ENCODERS if STEPS_OF.get(name, STEPS)])
def test_training_reduces_the_loss(user):
    losses = learned(user).losses
    assert losses[-FEW:].mean() < 0.8 * losses[:FEW].mean()


@pytest.mark.parametrize("user", USER_ENCODERS)
def test_a_trained_model_ranks_better_than_popularity(user):
    """By more than the 95 % interval of the difference, user by user."""
    run = learned(user)
    popular = run.experiment.evaluator.rank_by_popularity("test")
    difference = (run.late.rank <= 10).astype(float) - (popular.rank <= 10)
    assert difference.mean() > 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))


@pytest.mark.numerical
@pytest.mark.parametrize("user", USER_ENCODERS)
def test_eight_devices_do_what_one_does(user):
    """On a mesh with all three axes above one, each parameter split by its rule."""
    one = learned(user)
    eight = train(user, devices=8, steps=min(FEW, len(one.losses)), start=one.start)
    np.testing.assert_allclose(eight.losses, one.losses[:FEW], rtol=1e-5)
    # All ranks, and so all metrics. Rounding may decide between scores that are nearly equal.
    assert np.count_nonzero(eight.early.rank != one.early.rank) <= USERS // 400
