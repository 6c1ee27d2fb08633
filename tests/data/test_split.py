"""Splits, compared with a plain reading of their definition, and refused settings."""

import dataclasses
import pickle
import re

import numpy as np
import pytest

from pixelrec_jax.data.graph import training_graph
from pixelrec_jax.data.interactions import Interactions, load_interactions
from pixelrec_jax.data.queries import ranking_queries
from pixelrec_jax.data.split import build_split, global_time, training_counts
from pixelrec_jax.data.tasks import NextItem, Pairs
from pixelrec_jax.data.windows import training_windows
from pixelrec_jax.system.errors import UserError
from tests.tiny import interactions_of

GLOBAL = {"name": "global_time", "valid_from": 0.8, "test_from": 0.9}


def timed(times: list[list[int]], num_items: int = 40) -> Interactions:
    """Interactions at these times, one list a user; items are numbered in order of the rows."""
    rows = np.cumsum([len(t) for t in times])
    sequences = np.split(np.arange(rows[-1]) % (num_items - 1) + 1, rows[:-1])
    interactions = interactions_of(sequences, num_items)
    return dataclasses.replace(interactions, timestamps=np.concatenate(times).astype(np.int64))


def random_interactions() -> Interactions:
    """Users of 1 to 14 interactions, with many equal times, and one user without any."""
    rng = np.random.default_rng(0)
    times = [np.sort(rng.integers(0, 50, rng.integers(1, 15))).tolist() for _ in range(300)]
    return timed([*times[:150], [], *times[150:], []])


def test_global_time_by_hand():
    # The second user is new in validation, the third in the test part, the fourth ends before.
    interactions = timed([[1, 4, 5, 5, 9], [5, 6, 9], [9, 9], [1, 2]], num_items=13)
    split = global_time(interactions, valid_from=5, test_from=9)
    assert [split.train_length[user] for user in (1, 2, 3, 4)] == [2, 0, 0, 2]
    np.testing.assert_array_equal(split.targets["valid"], [-1, 2, -1, -1, -1])
    np.testing.assert_array_equal(split.targets["test"], [-1, 4, 7, -1, -1])
    valid = ranking_queries(split, split.users("valid"), "valid", history_length=3)
    np.testing.assert_array_equal(valid.history, [[0, 1, 2]])
    np.testing.assert_array_equal(valid.target, [3])
    test = ranking_queries(split, split.users("test"), "test", history_length=3)
    np.testing.assert_array_equal(test.user, [1, 2])
    np.testing.assert_array_equal(test.history, [[2, 3, 4], [0, 6, 7]])
    np.testing.assert_array_equal(test.seen, [[1, 2, 3, 4], [6, 7, 0, 0]])
    np.testing.assert_array_equal(test.target, [5, 8])
    np.testing.assert_array_equal(np.flatnonzero(training_counts(split)), [1, 2, 11, 12])


@pytest.mark.parametrize("name", ["leave_one_out", "global_time"])
def test_equals_the_definition_user_by_user(name):
    interactions = random_interactions()
    settings = {"name": name} | ({"valid_from": 31, "test_from": 43} if "time" in name else {})
    split = build_split(interactions, settings)
    trained = np.zeros(interactions.num_items, int)
    for user in range(interactions.num_users):
        rows = list(range(interactions.offsets[user], interactions.offsets[user + 1]))
        time = interactions.timestamps
        if name == "leave_one_out":
            train, valid, test = rows[:-2], rows[-2:-1], rows[-1:]
        else:
            train = [row for row in rows if time[row] < 31]
            valid = [row for row in rows if 31 <= time[row] < 43][:1]
            test = [row for row in rows if time[row] >= 43][:1]
        assert split.train_length[user] == len(train)
        assert split.is_training[rows].sum() == len(train)
        for part, target in (("valid", valid), ("test", test)):
            has_one = bool(target) and target != rows[:1]
            assert split.targets[part][user] == (target[0] if has_one else -1)
        np.add.at(trained, interactions.items[train], 1)
    np.testing.assert_array_equal(training_counts(split), trained)
    graph = training_graph(split)
    np.testing.assert_array_equal(np.unique(graph.user), np.flatnonzero(split.train_length))
    windows = training_windows(split, size=4)
    assert (windows.start + windows.length <= split.train_stop[windows.user]).all()


def test_nothing_trained_on_is_as_late_as_the_first_target():
    interactions = random_interactions()
    split = build_split(interactions, GLOBAL)
    time = interactions.timestamps
    latest = time[split.is_training].max()
    for part in ("valid", "test"):
        assert latest < time[split.targets[part][split.users(part)]].min()
    task = Pairs(split, history_length=4)
    rows = task.rows(np.arange(len(task)), np.random.default_rng(0))
    trained = set(interactions.items[time < split.settings["valid_from"]])
    assert set(rows.positive.ravel()) == trained


@pytest.mark.parametrize("fraction", [0.25, 0.8])
def test_fractions_are_of_interactions_and_equal_times_stay_together(fraction):
    interactions = random_interactions()
    split = global_time(interactions, valid_from=fraction, test_from=49)
    time, rows = split.settings["valid_from"], len(interactions.timestamps)
    before = split.is_training.sum()
    equal = np.count_nonzero(interactions.timestamps == time)
    assert equal > 1
    assert before == np.count_nonzero(interactions.timestamps < time)
    assert before <= fraction * rows < before + equal


def test_a_split_travels_without_its_arrays(toy_dataset):
    split = build_split(load_interactions(toy_dataset), GLOBAL)
    task = NextItem(split, history_length=10)
    travelled = pickle.dumps(task)
    assert len(travelled) < 2000
    there = pickle.loads(travelled)
    np.testing.assert_array_equal(there.windows.start, task.windows.start)
    np.testing.assert_array_equal(there.split.targets["test"], split.targets["test"])
    assert there.split.settings == split.settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "global_tine"}, "unknown dataset.split.name='global_tine'; did you mean 'global"),
        ({"name": "leave_one_out"}, "has the settings valid_from, test_from, but leave_one_out"),
        ({"valid_from": 0.9}, "valid_from is the time 45, test_from 45; give two times"),
        ({"valid_from": 45, "test_from": 44}, "valid_from is the time 45, test_from 44"),
        ({"valid_from": 0}, "after the first interaction (0)"),
        ({"test_from": 50}, "not after the last (49)"),
        ({"test_from": 44.5}, "44.5 is not a time"),
        ({"test_from": -0.5}, "-0.5 is not a time"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        build_split(random_interactions(), GLOBAL | changes)


def test_a_holdout_without_anybody_to_rank_is_refused():
    everybody_is_new = timed([[1, 2, 3], [5, 6, 7], [9, 9]])
    with pytest.raises(UserError, match="no user can be ranked in valid"):
        build_split(everybody_is_new, GLOBAL | {"valid_from": 5, "test_from": 9})
    with pytest.raises(UserError, match="no user can be ranked in valid"):
        build_split(timed([[1, 2], [1]]), {"name": "leave_one_out"})
