"""Deduplication: slots replace the ids of a shard, so that each distinct item is encoded once."""

from collections.abc import Sequence

import numpy as np


def deduplicate(ids: np.ndarray, *, sizes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Replaces ids by slots, which index the sorted distinct ids of a shard; slot 0 is PAD.

    Args:
      ids: int32[G, M], with repeats, 0 = PAD.
      sizes: what U, the number of slots, may be, ascending, so that few shapes are compiled: the
        first that suffices for all shards. The last one suffices always.

    Returns:
      The ids by slot int32[G, U], 0 in unused slots, and the slots int32[G, M].
    """
    shards, _ = ids.shape
    ids = np.concatenate([np.zeros((shards, 1), ids.dtype), ids], axis=1)  # PAD gets slot 0
    order = np.argsort(ids, axis=1, kind="stable")
    ordered = np.take_along_axis(ids, order, axis=1)
    is_new = np.diff(ordered, axis=1, prepend=ordered[:, :1]) > 0
    rank = np.cumsum(is_new, axis=1, dtype=np.intp)
    slots = np.empty_like(ids)
    np.put_along_axis(slots, order, rank.astype(ids.dtype), axis=1)
    used = int(rank[:, -1].max()) + 1
    unique = np.zeros((shards, next(size for size in sizes if size >= used)), ids.dtype)
    np.put_along_axis(unique, rank, ordered, axis=1)
    return unique, slots[:, 1:]


def rows_with_slot(slots: Sequence[np.ndarray], *, num_slots: int) -> np.ndarray:
    """Returns in how many rows of its shard each slot occurs.

    Args:
      slots: arrays int32[G, B, ...].
      num_slots: U.

    Returns:
      float32[G, U], 0 for PAD.
    """
    shards, rows = slots[0].shape[:2]
    ordered = np.sort(np.concatenate([x.reshape(shards, rows, -1) for x in slots], axis=2))
    is_first = np.diff(ordered, axis=2, prepend=0) > 0  # never true for PAD
    place = ordered + num_slots * np.arange(shards)[:, None, None]
    count = np.bincount(place[is_first], minlength=shards * num_slots)
    return count.reshape(shards, num_slots).astype(np.float32)
