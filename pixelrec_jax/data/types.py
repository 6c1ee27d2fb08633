"""The structs that the data pipeline gives to the model; every array has a static shape.

Letters in shapes, here and in all other modules: G data shards, U unique items per shard, B rows
per shard, L history length, T targets per row, K negatives per target, D width, E entries of an
item vector (D unless its encoder says otherwise), N catalogue size with the padding item 0,
Q queries, S longest list of seen items, M any flat batch of items.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Float

Array = jax.Array | np.ndarray  # numpy arrays on the host, jax arrays on the device

# Returns the scores of R items for each query, float32.
Score = Callable[
    [Float[Array, "*#batch D"], Float[Array, "*#batch R E"]], Float[Array, "*#batch R"]
]

# The axes of fields, checked where arrays enter the model; "..." is any further axes. Annotations
# cannot say them, since the fields of the same structs hold shardings and shapes as well.
_ITEMS = {"id": "G U", "image": "G U H W 3", "feature": "G U ...", "weight": "G U"}
_BATCH = {
    "user": "G B",
    "history": "G B L",
    "positive": "G B T",
    "negative": "G B T K",
    "weight": "G B T",
    "time": "G B L",
    "row": "G B",
}
_HISTORY = {"item_embeddings": "B L E", "item": "B L", "user": "B", "time": "B L", "row": "B"}

PAD = 0  # the item index, user index and slot of padding


class Items(struct.PyTreeNode):
    """The distinct items of each shard; an index into the axis U is a slot, and slot 0 is PAD.

    A batch that will be cut into microbatches has the items of each, one after the other: a slot
    then counts from the first item of its row's microbatch.

    Attributes:
      id: int32[G, U], item indices; unused slots hold PAD.
      image: uint8[G, U, H, W, 3]; None for encoders that do not read pixels.
      feature: float32[G, U, ...] or int32[G, U, ...], the items' rows of a frozen matrix; None for
        encoders that do not read one.
      weight: float32[G, U], the number of rows of the shard's batch that contain the item, 0 for
        PAD. Batch norm weights items by it, so that its statistics do not depend on the number of
        shards. None without images and in evaluation.
    """

    id: Array
    image: Array | None = None
    feature: Array | None = None
    weight: Array | None = None

    def check(self) -> None:
        """Raises ValueError for fields whose shapes are wrong or do not fit each other."""
        check_shapes(_shaped("items", self, _ITEMS))


class Batch(struct.PyTreeNode):
    """One training batch; histories, positives and negatives are slots into `items`, not ids.

    Attributes:
      items: the distinct items of each shard.
      user: int32[G, B], user indices; PAD marks a padding row.
      history: int32[G, B, L], slots, left-padded with 0.
      positive: int32[G, B, T], the slot to predict at each of the last T positions.
      negative: int32[G, B, T, K], slots of sampled negatives.
      weight: float32[G, B, T], 1 where there is a target and 0 elsewhere.
      time: int32[G, B, L], as in `History`.
      row: int32[G, B], the number of each row in the global batch; None in the global batch itself.
      real_rows: int32[], how many rows of the global batch are not padding; None likewise.
    """

    items: Items
    user: Array
    history: Array
    positive: Array
    negative: Array
    weight: Array
    time: Array | None = None
    row: Array | None = None
    real_rows: Array | None = None

    def row_numbers(self) -> Array:
        """Returns the number of each row in the global batch, int32[G, B]."""
        if self.row is not None:
            return self.row
        return jnp.arange(self.user.size).reshape(self.user.shape)

    def count_rows(self) -> Array:
        """Returns the number of rows of the global batch that are not padding, int32[]."""
        return jnp.count_nonzero(self.user != PAD) if self.real_rows is None else self.real_rows

    def check(self, **others: tuple[Array, str]) -> None:
        """Raises ValueError for fields whose shapes are wrong or do not fit each other.

        Args:
          **others: arrays that belong to the batch, each with its axes: query=(query, "G B T D").
        """
        fields = {**_shaped("items", self.items, _ITEMS), **_shaped("batch", self, _BATCH)}
        check_shapes({**fields, **others})


class History(struct.PyTreeNode):
    """The input of a user encoder.

    Attributes:
      item_embeddings: float32[B, L, E], oldest first, left-padded.
      item: int32[B, L], ids or slots; two are equal within a row if the items are. PAD at padding.
      user: int32[B], user indices.
      time: int32[B, L], how long before the last event of the history each event was: 0 to
        2^31 - 1, 0 at padding, in `Task.time_unit`. None unless the user encoder needs times.
      row: int32[B], the number of each row in the global batch, on which its random numbers depend;
        None outside training.
    """

    item_embeddings: Array
    item: Array
    user: Array
    time: Array | None = None
    row: Array | None = None

    def row_numbers(self) -> Array:
        """Returns the number of each row, int32[B]: by default its place."""
        return jnp.arange(len(self.user)) if self.row is None else self.row

    def check(self) -> None:
        """Raises ValueError for fields whose shapes are wrong or do not fit each other."""
        check_shapes(_shaped("history", self, _HISTORY))

    @property
    def mask(self) -> Array:
        """bool[B, L], False at padding."""
        return self.item != PAD


def _shaped(name: str, struct: Any, axes: dict[str, str]) -> dict[str, tuple[Array, str]]:
    """Returns the fields that a struct has, each with its axes."""
    fields = {f"{name}.{field}": (getattr(struct, field), axes[field]) for field in axes}
    return {field: pair for field, pair in fields.items() if pair[0] is not None}


def check_shapes(arrays: dict[str, tuple[Array, str]]) -> None:
    """Raises ValueError where an axis has two lengths; nothing is left of it in what is compiled.

    Args:
      arrays: by name, each with its axes, such as "G B 3 ...": letters, lengths, any further axes.
    """
    known: dict[str, tuple[int, str]] = {}  # of each letter the length, and which array says so
    for name, (array, text) in arrays.items():
        axes = text.removesuffix(" ...").split()
        rank_fits = len(array.shape) >= len(axes) if "..." in text else array.ndim == len(axes)
        expected = f"{name} has shape {list(array.shape)}, expected is [{', '.join(text.split())}]"
        if not rank_fits:
            raise ValueError(expected)
        for axis, length in zip(axes, array.shape, strict=False):
            fixed = (int(axis), "") if axis.isdigit() else (length, f" as in {name}")
            want, where = known.setdefault(axis, fixed)
            if length != want:
                said = "" if axis.isdigit() else f" with {axis} = {want}{where}"
                raise ValueError(expected + said)


def gather_slots(item: Array, *slots: Array) -> list[jax.Array]:
    """Returns, for each array of slots int32[G, ...], the vectors [G, ..., E] of `item` [G, U, E].

    Slots index within a shard, so that no shard reads the items of another. One gather serves all
    arrays: its gradient is then one scatter-add.
    """
    shards = len(item)
    flat = jnp.concatenate([x.reshape(shards, -1) for x in slots], axis=1)
    vector = jax.vmap(lambda table, slot: table[slot])(item, flat)
    ends = np.cumsum([x.size // shards for x in slots])[:-1]
    pieces = jnp.split(vector, ends, axis=1)
    return [piece.reshape(*x.shape, -1) for piece, x in zip(pieces, slots, strict=True)]
