"""Batches: one element is a whole batch, and its index is the global step.

Batch i is a pure function of (dataset, seed, i). So its content does not depend on the number of
workers, threads or processes, and the position of an interrupted run is one integer.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pixelrec_jax.data.negatives import Negatives
from pixelrec_jax.data.rows import Rows
from pixelrec_jax.data.slots import deduplicate, rows_with_slot
from pixelrec_jax.data.tasks import Task
from pixelrec_jax.data.time_offsets import TimeOffsets
from pixelrec_jax.data.types import PAD, Batch, Items
from pixelrec_jax.data.watched_file import WatchedFile
from pixelrec_jax.system.config import check_batch_size

_SAMPLED = 32  # batches from which sizes are chosen
_MULTIPLE = 8  # sizes are multiples of it


class ItemStore(Protocol):
    """Images or features of items by id; threads share a store, and it can be pickled.

    Attributes:
      field: the field of `Items` that it fills.
      fingerprint: a hash of the content; of a sample if the content is large.
      watched: the files that it reads.
    """

    field: str

    @property
    def watched(self) -> Sequence[WatchedFile]:
        """The files that it reads."""
        ...

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
        microbatches: int = 1,
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
          slot_buckets: how many different sizes U may have; the step is compiled for each.
          microbatches: how many pieces `cut_batch` will make of a batch; each has its own items.
          needs_time: whether batches have times, in the unit of the task.

        Raises:
          UserError: shards cannot share the batch, or the dataset has no times in that unit.
        """
        check_batch_size(batch_size, num_shards, microbatches)
        self.task, self.store, self.num_items = task, store, num_items
        self.negatives = negatives
        self.time_offsets = None
        if needs_time:
            self.time_offsets = TimeOffsets(task.split.interactions, task.time_unit)
        self.batch_size, self.epochs, self.seed = batch_size, epochs, seed
        self.num_shards, self.local_shards = num_shards, list(local_shards)
        self.microbatches = microbatches
        self._latest_order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._sizes = self._choose_sizes(slot_buckets)

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches that hold each example once; the last may have padding rows."""
        return -(-len(self.task) // self.batch_size)

    def __len__(self) -> int:
        return self.steps_per_epoch * self.epochs

    def __getitem__(self, index: int) -> Batch:
        rows, ids = self._read(int(index))
        items, (history, positive, negative) = self._slots(*ids)
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

    def _read(self, index: int) -> tuple[Rows, list[np.ndarray]]:
        """Returns the rows of a batch, and ids of histories, positives and negatives.

        The leading axis of ids is that of microbatches, [P, ...], those of each shard in a row.
        """
        epoch, position = divmod(index, self.steps_per_epoch)
        chosen = self._order(epoch)[position * self.batch_size :][: self.batch_size]
        rng = np.random.default_rng((self.seed, 1, index))
        rows = self.task.rows(chosen, rng)
        ids = (rows.history, rows.positive, self.negatives.draw(rows, rng))
        return rows, [self._split(x, self.num_shards * self.microbatches) for x in ids]

    def count_encoded(self, index: int) -> tuple[int, int]:
        """Returns how many items the microbatches of a batch have, and how many its shards have.

        The difference is that of items which several microbatches of a shard encode.
        """
        ids = self._read(index)[1]
        shards = [self._join(x) for x in ids]
        return int(_distinct(ids).sum()), int(_distinct(shards).sum())

    def _choose_sizes(self, count: int) -> list[int]:
        """Returns at most `count` sizes for U, ascending.

        The last one suffices for every batch, the one before it for nearly all. The last batch of
        an epoch, though smaller, has the same sizes: to compile for it would take longer.
        """
        first = self._read(0)[1]
        largest = min(sum(x[0].size for x in first) + 1, self.num_items)
        if count == 1:
            return [largest]
        steps = np.linspace(0, max(self.steps_per_epoch - 2, 0), _SAMPLED).astype(int)
        every = (_distinct(self._read(step)[1]) for step in np.unique(steps))
        used = np.array([distinct.max() for distinct in every]) + 1  # PAD
        parts = np.arange(1, count - 1) / (count - 1)
        wanted = [*np.quantile(used, parts), used.mean() + 4 * used.std()]
        multiples = [int(_MULTIPLE * np.ceil(size / _MULTIPLE)) for size in wanted]
        return sorted({largest, *(min(size, largest) for size in multiples)})

    def _order(self, epoch: int) -> np.ndarray:
        # One read and one write: threads of two epochs may run this at the same time.
        known, order = self._latest_order
        if known != epoch:
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.task))
            self._latest_order = (epoch, order)
        return order

    def _by_shard(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows [b, ...] as [G, B, ...]."""
        return self._split(rows, self.num_shards)

    def _split(self, rows: np.ndarray, pieces: int) -> np.ndarray:
        """Returns rows in equal pieces; padding rows fill the last batch of an epoch."""
        missing = self.batch_size * self.task.rows_per_example - len(rows)
        padding = [(0, missing)] + [(0, 0)] * (rows.ndim - 1)
        rows = np.pad(rows, padding, constant_values=PAD)
        return rows.reshape(pieces, -1, *rows.shape[1:])

    def _slots(self, *ids: np.ndarray) -> tuple[Items, list[np.ndarray]]:
        """Returns the distinct items of the local shards, and ids as slots [G, B, ...].

        Args:
          *ids: of `_read`. Items are distinct within a microbatch.
        """
        flat = [x.reshape(len(x), -1) for x in ids]
        unique, slots = deduplicate(np.concatenate(flat, axis=1), sizes=self._sizes)
        split = np.split(slots, np.cumsum([x.shape[1] for x in flat])[:-1], axis=1)
        slots = [slot.reshape(x.shape) for slot, x in zip(split, ids, strict=True)]
        items = item_batch(self._join(unique)[self.local_shards], self.store)
        if items.image is not None:
            weight = self._join(rows_with_slot(slots, num_slots=unique.shape[1]))
            items = items.replace(weight=weight[self.local_shards])
        return items, [self._join(x) for x in slots]

    def _join(self, x: np.ndarray) -> np.ndarray:
        """Returns arrays [P, ...] of microbatches by shard, [G, ...]."""
        return x.reshape(self.num_shards, -1, *x.shape[2:])


def _distinct(ids: Sequence[np.ndarray]) -> np.ndarray:
    """Returns how many distinct items each piece of id arrays [P, ...] has, int[P]."""
    flat = np.sort(np.concatenate([x.reshape(len(x), -1) for x in ids], axis=1), axis=1)
    return np.count_nonzero(np.diff(flat, axis=1, prepend=PAD), axis=1)


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
