"""The grain input pipeline: one element is a whole batch, and its index is the global step.

Batch i is a pure function of (dataset, seed, i). So its content does not depend on the number of
workers, threads or processes, and the position of an interrupted run is one integer.
"""

import ctypes
import errno
import os
import re
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

import grain
import numpy as np

from pixelrec_jax.data.negatives import Negatives
from pixelrec_jax.data.slots import deduplicate, rows_with_slot
from pixelrec_jax.data.tasks import Task
from pixelrec_jax.data.time_offsets import TimeOffsets
from pixelrec_jax.data.types import PAD, Batch, Items
from pixelrec_jax.system.config import check_batch_size
from pixelrec_jax.system.errors import TransientError, UserError

_Element = TypeVar("_Element", covariant=True)


class Source(Protocol[_Element]):
    """Random access to elements that are pure functions of their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> _Element: ...


class ItemStore(Protocol):
    """Images or features of items by id; threads share a store, and it can be pickled.

    Attributes:
      field: the field of `Items` that it fills.
      fingerprint: a hash of the content; of a sample if the content is large.
    """

    field: str

    @property
    def fingerprint(self) -> str:
        """A hash of the content."""
        ...

    def load(self, ids: np.ndarray) -> np.ndarray:
        """Returns n entries for ids int[n]; zeros for padding and ids above all items."""
        ...


def item_batch(ids: np.ndarray, store: ItemStore | None) -> Items:
    """Returns the items with ids int32[G, U], with their entries of the store if there is one."""
    if store is None:
        return Items(id=ids)
    rows = store.load(ids.reshape(-1))
    return Items(id=ids).replace(**{store.field: rows.reshape(*ids.shape, *rows.shape[1:])})


class TrainBatches:
    """Training batches by global step, over all epochs; the arrays hold the local shards only.

    Every process makes the integers of all shards: they are cheap, and all processes must agree on
    the number of slots. It decodes the images of its local shards only.
    """

    def __init__(
        self,
        task: Task,
        store: ItemStore | None,
        *,
        negatives: Negatives,
        num_items: int,
        batch_size: int,
        epochs: int,
        seed: int,
        num_shards: int,
        local_shards: Sequence[int],
        slot_buckets: int,
        needs_time: bool = False,
    ):
        """Builds the batches of a task.

        Args:
          task: makes rows of examples.
          store: images or features of items, if the model needs any.
          negatives: source of negatives.
          num_items: N, plus 1 if the task has the mask item.
          batch_size: examples in a global batch.
          epochs: how often all examples are used.
          seed: of order, masks and negatives.
          num_shards: G of the global batch.
          local_shards: the shards that this process supplies.
          slot_buckets: how many different sizes U may have.
          needs_time: whether batches have times, in the unit of the task.

        Raises:
          UserError: shards cannot share the batch, or the dataset has no times in that unit.
        """
        check_batch_size(batch_size, num_shards)
        self.task, self.store, self.num_items = task, store, num_items
        self.negatives = negatives
        self.time_offsets = None
        if needs_time:
            self.time_offsets = TimeOffsets(task.split.interactions, task.time_unit)
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.num_shards, self.local_shards = num_shards, list(local_shards)
        self.slot_buckets = slot_buckets
        self._latest_order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches that hold each example once; the last may have padding rows."""
        return -(-len(self.task) // self.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs

    def __getitem__(self, index: int) -> Batch:
        epoch, position = divmod(int(index), self.steps_per_epoch)
        chosen = self._order(epoch)[position * self.batch_size :][: self.batch_size]
        rng = np.random.default_rng((self.seed, 1, index))
        rows = self.task.rows(chosen, rng)
        ids = (rows.history, rows.positive, self.negatives.draw(rows, rng))
        items, (history, positive, negative) = self._slots(*map(self._by_shard, ids))
        local, time = self.local_shards, None
        if self.time_offsets is not None:
            time = self._by_shard(self.time_offsets.of(rows.event))[local]
        return Batch(
            items=items,
            user=self._by_shard(rows.user)[local],
            history=history[local],
            positive=positive[local],
            negative=negative[local],
            weight=self._by_shard(rows.weight)[local],
            time=time,
        )

    def _order(self, epoch: int) -> np.ndarray:
        # One read and one write: threads of two epochs may run this at the same time.
        known, order = self._latest_order
        if known != epoch:
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.task))
            self._latest_order = (epoch, order)
        return order

    def _by_shard(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows [b, ...] as [G, B, ...]; padding rows fill the last batch of an epoch."""
        missing = self.batch_size * self.task.rows_per_example - len(rows)
        padding = [(0, missing)] + [(0, 0)] * (rows.ndim - 1)
        rows = np.pad(rows, padding, constant_values=PAD)
        return rows.reshape(self.num_shards, -1, *rows.shape[1:])

    def _slots(self, *ids: np.ndarray) -> tuple[Items, list[np.ndarray]]:
        """Returns the distinct items of the local shards, and id arrays [G, ...] as slots."""
        flat = [x.reshape(self.num_shards, -1) for x in ids]
        total = sum(x.shape[1] for x in flat)
        unique, slots = deduplicate(
            np.concatenate(flat, axis=1),
            bucket=-(-(total + 1) // self.slot_buckets),
            largest=min(total + 1, self.num_items),
        )
        split = np.split(slots, np.cumsum([x.shape[1] for x in flat])[:-1], axis=1)
        slots = [slot.reshape(x.shape) for slot, x in zip(split, ids, strict=True)]
        items = item_batch(unique[self.local_shards], self.store)
        if items.image is not None:
            weight = rows_with_slot(slots, num_slots=unique.shape[1])
            items = items.replace(weight=weight[self.local_shards])
        return items, slots


class CatalogBatches:
    """The catalogue in chunks, sharded by rows: shard g has the items g * R .. (g + 1) * R - 1.

    Element j has, for each local shard, the items j * C .. (j + 1) * C - 1 of that shard
    (C = `chunk`). Rows after the last item are padding.
    """

    def __init__(
        self,
        num_items: int,
        store: ItemStore | None,
        *,
        chunk: int,
        num_shards: int,
        local_shards: Sequence[int],
    ):
        """Builds the chunks; `chunk` is the number of items per shard and element."""
        self.num_items, self.store = num_items, store
        self.num_shards, self.local_shards = num_shards, list(local_shards)
        self.chunk = min(chunk, -(-num_items // num_shards))
        self.steps = -(-num_items // (num_shards * self.chunk))

    @property
    def rows_per_shard(self) -> int:
        """R, the number of rows of a shard, a multiple of the chunk."""
        return self.steps * self.chunk

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Items:
        first = np.asarray(self.local_shards)[:, None] * self.rows_per_shard + index * self.chunk
        ids = first + np.arange(self.chunk)
        ids = np.where(ids < self.num_items, ids, PAD).astype(np.int32)
        return item_batch(ids, self.store)


@contextmanager
def iterate(
    source: Source[_Element], *, start: int, stop: int, workers: int, threads: int, prefetch: int
) -> Generator[Iterator[_Element]]:
    """Yields an iterator over source[start:stop]; grain makes the batches ahead of time.

    Args:
      source: random access to batches.
      start: index of the first batch; an interrupted run gives the one it continues from.
      stop: index after the last batch.
      workers: number of processes that make batches; with 0, threads of this process make them.
      threads: number of threads in each process.
      prefetch: how many batches each process may be ahead.
    """
    dataset = grain.MapDataset.source(source).slice(slice(start, stop))
    batches = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    )
    if workers:
        # Python's resource tracker frees batches that were not read, and would warn about each.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
            worker_init_fn=set_up_worker,
        )
    iterator = iter(batches)
    try:
        yield _explained(iterator) if workers else iterator
    finally:
        iterator.close()  # ends workers now and not at some later garbage collection


def _explained(batches: Iterator[_Element]) -> Iterator[_Element]:
    """Yields what workers make; says why one ended and what to do.

    Raises:
      UserError: the memory that workers share is full.
      TransientError: the system ended a worker.
    """
    full = (
        "/dev/shm, through which workers pass their batches, is full; give the container more with "
        "--shm-size=8g, or make the batches without workers, with data.workers=0"
    )
    try:
        yield from batches
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            raise UserError(full) from None
        raise
    except RuntimeError as error:
        ended = _ENDED.search(str(error))
        if ended is None:
            raise
        number = -int(ended[1])
        if number == signal.SIGBUS:
            raise UserError(full) from None
        raise TransientError(
            f"a worker that makes batches was ended by the system ({_signal(number)}), most often "
            "for lack of memory; start the same command again to continue, with a smaller "
            "data.workers or data.prefetch"
        ) from None


def _signal(number: int) -> str:
    known = {each.value for each in signal.Signals}
    return signal.Signals(number).name if number in known else f"exit code {-number}"


# Grain's error for a worker that did not end by itself; -9 is the exit code after SIGKILL.
_ENDED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def set_up_worker(index: int, count: int) -> None:
    """Makes a worker ignore signals, and on Linux end when its parent is killed.

    Slurm and terminals send signals to all processes; only the parent handles them.
    """
    del index, count  # grain passes them to every worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
