"""Batches: windows, negatives, slots, and independence of workers, threads and shards."""

import pickle

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.data.microbatches import cut_batch, join
from pixelrec_jax.data.negatives import Uniform, build_negatives
from pixelrec_jax.data.pipeline import CatalogBatches, TrainBatches
from pixelrec_jax.data.queries import ranking_queries
from pixelrec_jax.data.rows import Rows
from pixelrec_jax.data.slots import deduplicate, rows_with_slot
from pixelrec_jax.data.split import leave_one_out, training_counts
from pixelrec_jax.data.tasks import TASKS, NextItem, Pairs
from pixelrec_jax.data.windows import read_items, training_windows, window_events
from pixelrec_jax.data.workers import iterate
from pixelrec_jax.system.errors import UserError
from tests.tiny import interactions_of


def make_batches(dataset, *, pixels=True, **changes) -> TrainBatches:
    interactions = load_interactions(dataset)
    options = {
        "num_items": interactions.num_items,
        "batch_size": 16,
        "epochs": 2,
        "seed": 0,
        "num_shards": 2,
        "local_shards": [0, 1],
        "slot_buckets": 4,
    } | changes
    images = ImageStore(dataset, size=16) if pixels else None
    task = NextItem(leave_one_out(interactions), history_length=10)
    return TrainBatches(task, images, negatives=Uniform(task, count=1), **options)


def unslot(ids: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Slots [G, ...] back to item ids."""
    return np.take_along_axis(ids, slots.reshape(len(ids), -1), axis=1).reshape(slots.shape)


def test_windows_by_hand():
    # Training parts of 1, 4, 8 and 11 items; windows of 4 drop the oldest remainder.
    lengths = [3, 6, 10, 13]
    sequences = [100 * n + np.arange(1, length + 1) for n, length in enumerate(lengths)]
    interactions = interactions_of(sequences, 1000)
    windows = training_windows(leave_one_out(interactions), size=4)
    events = window_events(windows, np.arange(len(windows)), size=4)
    read = read_items(interactions, events)
    expected = [
        [0, 0, 0, 1],
        [101, 102, 103, 104],
        [201, 202, 203, 204],
        [205, 206, 207, 208],
        [304, 305, 306, 307],
        [308, 309, 310, 311],
    ]
    np.testing.assert_array_equal(read, expected)
    np.testing.assert_array_equal(windows.user, [1, 2, 3, 3, 4, 4])


def test_queries_by_hand():
    interactions = interactions_of([np.array([5, 6, 7]), np.array([1, 2, 3, 4, 8])], 9)
    split = leave_one_out(interactions)
    valid = ranking_queries(split, np.array([1, 2]), "valid", history_length=2)
    np.testing.assert_array_equal(valid.target, [6, 4])
    np.testing.assert_array_equal(valid.history, [[0, 5], [2, 3]])
    np.testing.assert_array_equal(valid.seen, [[5, 0, 0, 0], [1, 2, 3, 0]])
    test = ranking_queries(split, np.array([1, 2]), "test", history_length=2)
    np.testing.assert_array_equal(test.target, [7, 8])
    np.testing.assert_array_equal(test.history, [[5, 6], [3, 4]])
    np.testing.assert_array_equal(test.seen, [[5, 6, 0, 0], [1, 2, 3, 4]])
    np.testing.assert_array_equal(training_counts(split), [0, 1, 1, 1, 0, 1, 0, 0, 0])


def test_next_item_rows():
    # Training parts [3, 4, 5], [1, 2, 3, 4, 5] and [6].
    sequences = [np.array(s) for s in ([3, 4, 5, 9, 9], [1, 2, 3, 4, 5, 9, 9], [6, 9, 9])]
    task = NextItem(leave_one_out(interactions_of(sequences, 40)), history_length=4)
    rows = task.rows(np.arange(len(task)), np.random.default_rng(0))
    np.testing.assert_array_equal(rows.user, [1, 2, 3])
    np.testing.assert_array_equal(rows.history, [[0, 0, 3, 4], [1, 2, 3, 4], [0, 0, 0, 0]])
    np.testing.assert_array_equal(rows.positive, [[0, 0, 4, 5], [2, 3, 4, 5], [0, 0, 0, 0]])
    np.testing.assert_array_equal(rows.weight, [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(rows.exclude, [[0, 0, 3, 4, 5], [1, 2, 3, 4, 5], [0, 0, 0, 0, 6]])


def make_task(name: str, sequences: list[np.ndarray], num_items: int, *, history_length: int):
    options = {"mask_ratio": 0.5} if name == "cloze" else {}
    split = leave_one_out(interactions_of(sequences, num_items))
    return TASKS[name](split, history_length=history_length, **options)


@pytest.mark.parametrize("name", TASKS)
def test_negatives_of_every_task_are_no_items_of_the_row(name):
    draw = np.random.default_rng(1)
    sequences = [draw.integers(1, 30, size=size) for size in draw.integers(1, 20, size=40)]
    task = make_task(name, sequences, 30, history_length=4)
    rng = np.random.default_rng(0)
    rows = task.rows(np.arange(len(task)), rng)
    negative = Uniform(task, count=3).draw(rows, rng)
    assert negative.shape == (*rows.positive.shape, 3)
    assert len(rows.positive) == len(task) * task.rows_per_example
    np.testing.assert_array_equal(negative > 0, np.repeat(rows.weight[..., None] > 0, 3, axis=-1))
    history = np.where(rows.history < 30, rows.history, 0)  # without the mask item
    for b in range(len(negative)):
        assert set(history[b]) | set(rows.positive[b]) <= {0, *rows.exclude[b]}
        assert not set(negative[b].ravel()) & (set(rows.exclude[b]) - {0})
    assert np.count_nonzero(rows.exclude, axis=1).max() <= task.most_excluded


def test_an_unknown_source_of_negatives_is_refused():
    task = make_task("pairs", [np.arange(1, 9)], 30, history_length=4)
    config = ConfigDict({"negatives": {"name": "unifrom", "count": 1}})
    with pytest.raises(UserError, match=r"unknown negatives\.name=.unifrom"):
        build_negatives(config, task)


def test_negatives_are_uniform_outside_the_window():
    task = NextItem(leave_one_out(interactions_of([np.arange(1, 6)], 11)), history_length=4)
    targets = np.ones((4000, 2), np.int32)
    rows = Rows(
        user=targets[:, 0],
        history=targets,
        positive=targets,
        weight=targets.astype(np.float32),
        exclude=np.tile(np.array([[2, 5, 7]], np.int32), (4000, 1)),
        event=np.zeros((4000, 2), np.int64),
    )
    negative = Uniform(task, count=2).draw(rows, np.random.default_rng(0))
    counts = np.bincount(negative.ravel(), minlength=11)
    assert counts[[0, 2, 5, 7]].sum() == 0
    others = counts[[1, 3, 4, 6, 8, 9, 10]]
    # 16,000 draws over seven items: within five standard deviations of the mean.
    assert np.abs(others - 16000 / 7).max() < 5 * np.sqrt(16000 / 7)


def test_data_without_anything_to_learn_is_refused():
    few_items = leave_one_out(interactions_of([np.arange(1, 6)], 6))
    with pytest.raises(UserError, match="the catalogue has 5 items"):
        Uniform(NextItem(few_items, history_length=10), count=1)
    everything = leave_one_out(interactions_of([np.array([1, 2, 3, 1, 2])], 4))
    with pytest.raises(UserError, match="the catalogue has 3 items"):
        Uniform(Pairs(everything, history_length=10), count=1)
    short = leave_one_out(interactions_of([np.array([1, 2, 3])] * 4, 50))
    with pytest.raises(UserError, match="no user has two training interactions or more"):
        NextItem(short, history_length=10)


def test_a_task_travels_without_its_windows(toy_dataset):
    task = NextItem(leave_one_out(load_interactions(toy_dataset)), history_length=10)
    travelled = pickle.dumps(task)
    assert len(travelled) < 2000
    np.testing.assert_array_equal(pickle.loads(travelled).windows.start, task.windows.start)


def test_rows_with_slot_do_not_depend_on_the_shards():
    one = np.array([[[1, 1, 2], [0, 1, 3], [0, 0, 0], [3, 2, 2]]])  # one shard of four rows
    np.testing.assert_array_equal(rows_with_slot([one], num_slots=5), [[0, 2, 2, 2, 0]])
    parts = [one[..., :1], one[..., 1:]]
    np.testing.assert_array_equal(rows_with_slot(parts, num_slots=5), [[0, 2, 2, 2, 0]])
    two = rows_with_slot([one.reshape(2, 2, 3)], num_slots=5)
    np.testing.assert_array_equal(two, [[0, 2, 1, 1, 0], [0, 0, 1, 1, 0]])


def test_deduplicate():
    ids = np.array([[7, 0, 7, 3], [1, 2, 3, 4]], np.int32)
    unique, slots = deduplicate(ids, sizes=[3, 6, 9])
    np.testing.assert_array_equal(unique, [[0, 3, 7, 0, 0, 0], [0, 1, 2, 3, 4, 0]])
    np.testing.assert_array_equal(slots, [[2, 0, 2, 1], [1, 2, 3, 4]])
    np.testing.assert_array_equal(unslot(unique, slots), ids)
    assert deduplicate(ids, sizes=[3, 5])[0].shape == (2, 5)


@pytest.mark.parametrize("slot_buckets", [1, 2, 3])
def test_batches_have_few_sizes(toy_dataset, slot_buckets):
    shards = {"num_shards": 1, "local_shards": [0]}
    batches = make_batches(toy_dataset, pixels=False, slot_buckets=slot_buckets, **shards)
    shapes = {batches[index].items.id.shape for index in range(len(batches))}
    assert len(shapes) <= slot_buckets
    mean = np.mean([np.count_nonzero(batches[index].items.id) for index in range(len(batches))])
    if slot_buckets > 1:
        assert min(shapes)[1] < 1.3 * mean


def test_an_epoch_covers_every_window_once(toy_dataset):
    batches = make_batches(toy_dataset)
    windows = batches.task.windows
    events = window_events(windows, np.arange(len(windows)), size=11)
    expected = read_items(batches.task.split.interactions, events)
    for epoch in range(2):
        seen = []
        for step in range(batches.steps_per_epoch):
            batch = batches[epoch * batches.steps_per_epoch + step]
            history = unslot(batch.items.id, batch.history)
            positive = unslot(batch.items.id, batch.positive)
            window = np.concatenate([history, positive[..., -1:]], axis=-1)
            real = batch.user > 0
            # A window of one item has no target; its item stands at the end of the window.
            seen += window[real].tolist()
        several = windows.length > 1
        assert sorted(w for w in seen if w[-1]) == sorted(expected[several].tolist())
        assert len(seen) == len(windows)
    first = make_batches(toy_dataset)[0]
    other_epoch = batches[batches.steps_per_epoch]
    assert not np.array_equal(first.user, other_epoch.user)


def test_images_belong_to_their_ids(toy_dataset):
    batch = make_batches(toy_dataset)[1]
    store = ImageStore(toy_dataset, size=16)
    np.testing.assert_array_equal(
        batch.items.image.reshape(-1, 16, 16, 3), store.load(batch.items.id.ravel())
    )
    assert batch.items.image.any()


def test_shards_hold_the_same_rows_however_many_there_are(toy_dataset):
    def rows(shards):
        batch = make_batches(
            toy_dataset, pixels=False, num_shards=shards, local_shards=range(shards)
        )[2]
        arrays = [unslot(batch.items.id, x) for x in (batch.history, batch.positive)]
        arrays += [unslot(batch.items.id, batch.negative), batch.weight, batch.user]
        return [x.reshape(16, *x.shape[2:]) for x in arrays]

    for one, eight in zip(rows(1), rows(8), strict=True):
        np.testing.assert_array_equal(one, eight)


def test_microbatches_have_the_rows_of_the_batch_and_their_own_items(toy_dataset):
    whole, batch = make_batches(toy_dataset)[2], make_batches(toy_dataset, microbatches=4)[2]
    microbatches = jax.device_get(cut_batch(batch, 4))
    np.testing.assert_array_equal(join(microbatches.history), batch.history)
    store = ImageStore(toy_dataset, size=16)
    for number in range(4):
        piece = jax.tree.map(lambda x, n=number: x[n], microbatches)
        ids, rows = piece.items.id, slice(2 * number, 2 * number + 2)  # of 8 in each shard
        for name in ("history", "positive", "negative"):
            expected = unslot(whole.items.id, getattr(whole, name))[:, rows]
            np.testing.assert_array_equal(unslot(ids, getattr(piece, name)), expected)
        np.testing.assert_array_equal(piece.user, whole.user[:, rows])
        np.testing.assert_array_equal(piece.row, np.arange(16).reshape(2, 8)[:, rows])
        np.testing.assert_array_equal(piece.weight, whole.weight[:, rows])
        images = store.load(ids.reshape(-1)).reshape(piece.items.image.shape)
        np.testing.assert_array_equal(piece.items.image, images)
        assert (ids[:, 0] == 0).all()
        for shard in ids:
            real = shard[shard > 0]
            assert len(set(real)) == len(real)


def test_a_process_gets_its_own_shards(toy_dataset):
    whole = make_batches(toy_dataset, num_shards=4, local_shards=[0, 1, 2, 3])[3]
    part = make_batches(toy_dataset, num_shards=4, local_shards=[1, 3])[3]
    np.testing.assert_array_equal(part.items.image, whole.items.image[[1, 3]])
    np.testing.assert_array_equal(part.history, whole.history[[1, 3]])


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (0, 3), (2, 1)])
def test_order_does_not_depend_on_workers_and_continues_anywhere(toy_dataset, workers, threads):
    batches = make_batches(toy_dataset)
    stop = len(batches)
    with iterate(
        batches, start=3, stop=stop, workers=workers, threads=threads, prefetch=2
    ) as iterator:
        for step, batch in enumerate(iterator, start=3):
            expected = batches[step]
            np.testing.assert_array_equal(batch.items.image, expected.items.image)
            np.testing.assert_array_equal(batch.negative, expected.negative)
    assert step == stop - 1


def test_batch_size_must_fit_the_mesh(toy_dataset):
    with pytest.raises(UserError, match=r"train.batch_size=15 .* multiple of 2"):
        make_batches(toy_dataset, batch_size=15)


@pytest.mark.parametrize("shards", [1, 3, 8])
def test_catalogue_is_covered_once_in_row_order(toy_dataset, shards):
    source = CatalogBatches(101, None, chunk=7, num_shards=shards, local_shards=range(shards))
    rows = np.concatenate([source[step].id for step in range(len(source))], axis=1)
    assert rows.shape == (shards, source.rows_per_shard)
    flat = rows.ravel()
    np.testing.assert_array_equal(flat[:101], np.arange(101))
    assert not flat[101:].any()
