"""What user encoders have in common."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float
from ml_collections import ConfigDict

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import DTYPE, Flag, Option

SHOW_PADDING = Option(
    "whether the encoder reads what padding is encoded as, as in the reference, and not zeros",
    Flag(),
)


class UserEncoder(nn.Module):
    """Maps a `History` to queries float32[B, S, D], S = L or 1; the last one is the user now.

    Training scores the last T queries against the T targets of a row, ranking uses the last query.

    What a config may set are the fields that declare an `Option`.

    Attributes:
      num_users: number of users, with the padding user 0; for those who keep a table of users.
      width: D, for the same.
    """

    num_users: int
    width: int
    dtype: jnp.dtype = DTYPE.field()

    # Whether `Recommender.propagate` passes vectors along the edges of users and items.
    uses_graph: ClassVar[bool] = False
    # Whether a parameter "table" has a row for every user, which `embedding_lookup` reads.
    has_table: ClassVar[bool] = False
    # The names of the item encoders whose vectors this one can read, None for all; and why not
    # the others, as in "it compares frozen features; use item=features".
    item_encoders: ClassVar[tuple[str, ...] | None] = None
    why_not_others: ClassVar[str] = ""
    # What features have to become, where an item has some: a key of `FEATURE_HEADS`.
    feature_head: ClassVar[str] = "dense"
    # The unit of `History.time`, one of `data.time_units.UNITS`; None does without times.
    needs_time: ClassVar[str | None] = None

    @classmethod
    def check_item(cls, item: ConfigDict) -> None:
        """Raises `UserError` for a `config.item` whose vectors this encoder cannot work with."""
        if cls.item_encoders is not None and item.name not in cls.item_encoders:
            raise UserError(f"{cls.__name__} cannot take item={item.name}: {cls.why_not_others}")
        if item.get("feature_head", cls.feature_head) != cls.feature_head:
            raise UserError(
                f"item.feature_head={item.feature_head!r} does not suit {cls.__name__}; "
                f"use {cls.feature_head}"
            )

    def __call__(self, history: History, *, train: bool) -> Float[Array, "B S D"]:
        """Returns the queries."""
        raise NotImplementedError

    def score(
        self, query: Float[Array, "*#batch D"], item: Float[Array, "*#batch R E"]
    ) -> Float[Array, "*#batch R"]:
        """Returns the score of each of R items for its query, float32."""
        return dot_product(query, item)


def dot_product(
    query: Float[Array, "*#batch D"], item: Float[Array, "*#batch R E"]
) -> Float[Array, "*#batch R"]:
    """Returns the dot product of each of R items with its query, float32.

    An item's entries past the D-th are for user encoders to read and not scored. In full float32,
    also where the chip prefers bf16.
    """
    item = item[..., : query.shape[-1]]
    return jnp.einsum("...d,...rd->...r", query, item, precision=jax.lax.Precision.HIGHEST)


def visible_embeddings(history: History, *, show_padding: bool) -> Float[Array, "B L E"]:
    """Returns the history's vectors: zeros at padding, unless padding is to be seen.

    The reference shows some encoders what the item table holds for padding, which is random, or how
    the encoder sees a grey image.
    """
    if show_padding:
        return history.item_embeddings
    return jnp.where(history.mask[..., None], history.item_embeddings, 0)
