"""Offsets between events: units, saturation, padding, every task, and no cost without them."""

import dataclasses
import pickle

import jax
import numpy as np
import pytest

from pixelrec_jax.data.interactions import Interactions, load_interactions
from pixelrec_jax.data.mask_item import mask_item_of, num_ids
from pixelrec_jax.data.negatives import Uniform
from pixelrec_jax.data.pipeline import TrainBatches
from pixelrec_jax.data.queries import ranking_queries
from pixelrec_jax.data.split import leave_one_out
from pixelrec_jax.data.tasks import TASKS
from pixelrec_jax.data.time_offsets import TimeOffsets
from pixelrec_jax.data.time_units import UNITS
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.users.sasrec import SASRec
from tests.tiny import interactions_of, tiny_config

LARGEST = 2**31 - 1
LENGTH = 4


def with_times(interactions: Interactions, times, unit: str) -> Interactions:
    manifest = interactions.manifest | {"timestamp_unit": unit}
    timestamps = np.asarray(times, np.int64)
    return dataclasses.replace(interactions, timestamps=timestamps, manifest=manifest)


def offsets(times: list[int], own: str, asked: str) -> list[int]:
    """The offsets of one history of all these events."""
    interactions = with_times(interactions_of([np.arange(1, len(times) + 1)], 90), times, own)
    result = TimeOffsets(interactions, asked).of(np.arange(len(times))[None])
    assert result.dtype == np.int32
    return result[0].tolist()


@pytest.mark.parametrize(
    ("times", "own", "asked", "expected"),
    [
        ([100, 150, 160], "seconds", "seconds", [60, 10, 0]),
        ([0, 86_399, 86_400, 172_799], "seconds", "days", [1, 1, 0, 0]),
        ([-1500, 0, 400], "milliseconds", "seconds", [1, 0, 0]),
        ([5, 7], "days", "seconds", [172_800, 0]),
        ([5, 7], "hours", "minutes", [120, 0]),
        ([0, LARGEST - 1, LARGEST, LARGEST + 1], "seconds", "seconds", [LARGEST, 2, 1, 0]),
        ([0, 2**40], "seconds", "seconds", [LARGEST, 0]),
        ([0, 2**40], "milliseconds", "hours", [2**40 // 3_600_000, 0]),
        ([0, 24_855, 49_710], "days", "seconds", [LARGEST, 24_855 * 86_400, 0]),
        ([-(2**63), 2**63 - 1], "nanoseconds", "nanoseconds", [LARGEST, 0]),
        ([-(2**63), 2**63 - 1], "nanoseconds", "days", [(2**64 - 1) // UNITS["days"], 0]),
        ([-(2**63), 2**63 - 1], "days", "nanoseconds", [LARGEST, 0]),
    ],
)
def test_offsets_are_in_the_unit_asked_for_rounded_down_and_saturate(times, own, asked, expected):
    assert offsets(times, own, asked) == expected


@pytest.mark.parametrize("own", UNITS)
@pytest.mark.parametrize("asked", UNITS)
def test_every_pair_of_units_converts(own, asked):
    times = [-(3**k) for k in reversed(range(40))]  # up to 2^61 apart
    exact = [(times[-1] - time) * UNITS[own] // UNITS[asked] for time in times]
    assert offsets(times, own, asked) == [min(x, LARGEST) for x in exact]


def test_padding_has_no_offset():
    interactions = with_times(interactions_of([np.arange(1, 4)], 90), [10, 20, 50], "seconds")
    event = np.array([[-1, -1, 0, 1], [-1, -1, -1, -1], [-1, -1, -1, 2]])
    expected = [[0, 0, 10, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(TimeOffsets(interactions, "seconds").of(event), expected)


@pytest.mark.parametrize(
    ("own", "asked", "message"),
    [
        ("order", "seconds", r"reads times in seconds.* are an order only; prepare it again"),
        ("other", "days", r"reads times in days.* in a unit that is not known; prepare it"),
        ("seconds", "secnods", r"unknown unit of time 'secnods'; did you mean 'seconds'"),
    ],
)
def test_times_that_nobody_knows_are_refused_in_one_line(own, asked, message):
    with pytest.raises(UserError, match=message) as caught:
        offsets([1, 2], own, asked)
    assert "\n" not in str(caught.value)


def make_batches(name: str, interactions: Interactions, **options) -> TrainBatches:
    ratio = {"mask_ratio": 0.5} if name == "cloze" else {}
    task = TASKS[name](leave_one_out(interactions), history_length=LENGTH, **ratio)
    return TrainBatches(
        task,
        None,
        negatives=Uniform(task, count=1),
        num_items=num_ids(interactions.num_items, mask_item_of(type(task), interactions.num_items)),
        batch_size=8,
        epochs=1,
        seed=0,
        num_shards=2,
        local_shards=[1, 0],
        slot_buckets=1,
        **options,
    )


def distinct_items(num_users: int = 30) -> Interactions:
    """Users without a repeat, so that an item tells which event it is; times in seconds."""
    rng = np.random.default_rng(0)
    sequences = [1 + rng.permutation(60)[:size] for size in rng.integers(1, 20, size=num_users)]
    interactions = interactions_of(sequences, 61)
    times = [np.sort(rng.integers(0, 10_000, len(s))) for s in sequences]
    return with_times(interactions, np.concatenate(times), "seconds")


@pytest.mark.parametrize("name", TASKS)
def test_times_belong_to_the_items_of_every_task(name):
    interactions = distinct_items()
    time_of = {}
    for user in range(1, interactions.num_users):
        for row in range(*interactions.offsets[user : user + 2]):
            time_of[user, int(interactions.items[row])] = int(interactions.timestamps[row])
    batches = make_batches(name, interactions, needs_time=True)
    seen = 0
    for step in range(len(batches)):
        batch = batches[step]
        assert batch.time.dtype == np.int32
        assert batch.time.shape == batch.history.shape
        for shard, row in np.ndindex(batch.user.shape):
            user = int(batch.user[shard, row])
            items = batch.items.id[shard][batch.history[shard, row]]
            # What is masked is its target: histories and targets have equal places there.
            if name == "cloze":
                target = batch.items.id[shard][batch.positive[shard, row]]
                items = np.where(items == interactions.num_items, target, items)
            known = [time_of[user, item] if item else None for item in items.tolist()]
            last = known[-1]
            expected = [0 if time is None else last - time for time in known]
            np.testing.assert_array_equal(batch.time[shard, row], expected)
            seen += np.count_nonzero(expected)
    assert seen > 100 if name != "pairs" else seen == 0  # whose histories are empty


def test_a_task_chooses_the_unit(monkeypatch):
    in_seconds = make_batches("next_item", distinct_items(), needs_time=True)[0].time
    monkeypatch.setattr(TASKS["next_item"], "time_unit", "minutes")
    in_minutes = make_batches("next_item", distinct_items(), needs_time=True)[0].time
    np.testing.assert_array_equal(in_minutes, in_seconds // 60)
    assert in_minutes.max() > 0


def test_the_unit_of_every_task_is_known():
    assert {task.time_unit for task in TASKS.values()} <= set(UNITS)


class Untouchable:
    """Timestamps that must not be read."""

    def __getattr__(self, name):
        raise AssertionError(f"timestamps were read: {name}")

    def __getitem__(self, key):
        raise AssertionError("timestamps were read")

    def __array__(self, *args, **kwargs):
        raise AssertionError("timestamps were read")


@pytest.mark.parametrize("name", TASKS)
def test_unless_asked_no_timestamp_is_read_and_no_leaf_is_added(name):
    with_times = make_batches(name, distinct_items(), needs_time=True)[0]
    interactions = dataclasses.replace(distinct_items(), timestamps=Untouchable())
    batch = make_batches(name, interactions)[0]
    assert batch.time is None
    assert len(jax.tree.leaves(batch)) == len(jax.tree.leaves(with_times)) - 1
    same = with_times.replace(time=None)
    jax.tree.map(np.testing.assert_array_equal, batch, same)
    with pytest.raises(AssertionError, match="timestamps were read"):
        make_batches(name, interactions, needs_time=True)[0]


def test_queries_carry_times_when_asked():
    interactions = interactions_of([np.array([5, 6, 7]), np.array([1, 2, 3, 4, 8])], 9)
    interactions = with_times(interactions, [0, 60, 90, 0, 200, 230, 500, 900], "seconds")
    split = leave_one_out(interactions)
    users = np.array([1, 2])
    queries = ranking_queries(split, users, "test", history_length=3, time_unit="minutes")
    np.testing.assert_array_equal(queries.history, [[0, 5, 6], [2, 3, 4]])
    np.testing.assert_array_equal(queries.time, [[0, 1, 0], [5, 4, 0]])
    assert queries.time.dtype == np.int32
    split = dataclasses.replace(
        split, interactions=dataclasses.replace(interactions, timestamps=Untouchable())
    )
    without = ranking_queries(split, users, "test", history_length=3)
    assert without.time is None
    assert len(jax.tree.leaves(without)) == len(jax.tree.leaves(queries)) - 1


def test_offsets_travel_to_workers_as_a_path(toy_dataset):
    interactions = load_interactions(toy_dataset)
    assert interactions.manifest["timestamp_unit"] == "seconds"
    offsets = TimeOffsets(leave_one_out(interactions).interactions, "days")
    travelled = pickle.dumps(offsets)
    assert len(travelled) < 1000
    event = np.arange(6)[None]
    np.testing.assert_array_equal(pickle.loads(travelled).of(event), offsets.of(event))


def test_a_user_encoder_asks_for_times(toy_dataset, monkeypatch):
    config = tiny_config("user=sasrec,item=id,dataset=toy", toy_dataset)

    def build():
        experiment = build_experiment(config, devices=jax.devices()[:1])
        evaluator = experiment.evaluator
        queries, _ = next(evaluator._queries("valid"))
        return experiment.batches[0].time, queries.time, experiment.data_fingerprint

    time, query_time, without_times = build()
    assert time is None
    assert query_time is None
    monkeypatch.setattr(SASRec, "needs_time", True)
    time, query_time, with_times = build()
    monkeypatch.setattr(TASKS[config.task.name], "time_unit", "hours")
    in_hours, query_in_hours, _ = build()
    np.testing.assert_array_equal(in_hours, time // 3600)
    np.testing.assert_array_equal(query_in_hours, query_time // 3600)
    assert query_in_hours.max() > 0
    assert time.shape[-1] == config.task.history_length
    assert time.max() > 0
    assert with_times != without_times
