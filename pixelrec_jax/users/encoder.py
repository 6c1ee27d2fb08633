"""What user encoders have in common."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from pixelrec_jax.data.types import History
from pixelrec_jax.system.errors import UserError


class UserEncoder(nn.Module):
    """Maps a `History` to queries float32[B, S, D], S = L or 1; the last one is the user now.

    Training scores the last T queries against the T targets of a row, ranking uses the last query.

    Attributes:
      num_users: number of users, with the padding user 0; for those who keep a table of users.
      width: D, for the same.
      dtype: of computation.
    """

    num_users: int
    width: int
    dtype: jnp.dtype

    # Whether `Recommender.propagate` passes vectors along the edges of users and items.
    uses_graph: ClassVar[bool] = False
    # Whether a parameter "table" has a row for every user, which `embedding_lookup` reads.
    has_table: ClassVar[bool] = False

    @classmethod
    def check_item(cls, item: ConfigDict) -> None:
        """Raises `UserError` for a `config.item` whose vectors this encoder cannot work with."""
        check_feature_head(item, "dense")

    def __call__(self, history: History, *, train: bool) -> jax.Array:
        """Returns the queries."""
        raise NotImplementedError

    def score(self, query: jax.Array, item: jax.Array) -> jax.Array:
        """Returns float32[..., R] for queries [..., D] and items [..., R, E]."""
        return dot_product(query, item)


def dot_product(query: jax.Array, item: jax.Array) -> jax.Array:
    """Returns float32[..., R], the dot products of queries [..., D] with items [..., R, E].

    An item's entries past the D-th are for user encoders to read and not scored. In full float32,
    also where the chip prefers bf16.
    """
    item = item[..., : query.shape[-1]]
    return jnp.einsum("...d,...rd->...r", query, item, precision=jax.lax.Precision.HIGHEST)


def check_feature_head(item: ConfigDict, *heads: str) -> None:
    """Raises `UserError` if `item.feature_head`, where there is one, is none of these."""
    if item.get("feature_head", heads[0]) not in heads:
        raise UserError(
            f"item.feature_head={item.feature_head!r} does not suit this user encoder; "
            f"use {' or '.join(heads)}"
        )


def visible_embeddings(history: History, *, show_padding: bool) -> jax.Array:
    """Returns float32[B, L, D]: zeros at padding, unless padding is to be seen.

    The reference shows some encoders what the item table holds for padding, which is random, or how
    the encoder sees a grey image.
    """
    if show_padding:
        return history.item_embeddings
    return jnp.where(history.mask[..., None], history.item_embeddings, 0)
