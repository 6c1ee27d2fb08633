"""What user encoders have in common."""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float
from ml_collections import ConfigDict

from pixelrec_jax.data.graph import Graph
from pixelrec_jax.data.types import Array, History
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.options import DTYPE, Flag, Option

SHOW_PADDING = Option(
    "whether the encoder reads the vectors of padding, as in the reference, and not zeros",
    Flag(),
)


class UserEncoder(nn.Module):
    """Maps a `History` to float32 queries, S = L or 1; the last one describes the user now.

    Training scores the T targets of a row for its last T queries; ranking uses the last query. A
    config may set the fields that declare an `Option`.

    Attributes:
      num_users: number of users, the padding user 0 included; read by encoders with a table.
      width: D, read by the same encoders.
      dtype: of computation.
    """

    num_users: int
    width: int
    dtype: DTypeLike = DTYPE.field()

    # Whether `Recommender.propagate` passes vectors along the edges of users and items.
    uses_graph: ClassVar[bool] = False
    # Whether a parameter "table" has a row for every user, which `embedding_lookup` reads.
    has_table: ClassVar[bool] = False
    # The item encoders that this one can work with, None for all.
    item_encoders: ClassVar[tuple[str, ...] | None] = None
    # Why it cannot with others, and what to do: "it compares frozen features; use item=features".
    why_not_others: ClassVar[str] = ""
    # The head that an item with features needs: a key of `FEATURE_HEADS`.
    feature_head: ClassVar[str] = "dense"
    # Whether it reads `History.time`, which is in the unit that the task chooses.
    needs_time: ClassVar[bool] = False

    @classmethod
    def check_item(cls, item: ConfigDict) -> None:
        """Checks that this encoder can read the vectors of a `config.item`.

        Raises:
          UserError: it cannot.
        """
        if cls.item_encoders is not None and item.name not in cls.item_encoders:
            raise UserError(f"{cls.__name__} cannot take item={item.name}: {cls.why_not_others}")
        if item.get("feature_head", cls.feature_head) != cls.feature_head:
            raise UserError(
                f"item.feature_head={item.feature_head!r} does not suit {cls.__name__}; "
                f"use item.feature_head={cls.feature_head}"
            )

    def propagate(self, params: dict, graph: Graph) -> dict:
        """Returns the parameters of the whole recommender, propagated; if `uses_graph`."""
        raise NotImplementedError

    def __call__(self, history: History, *, train: bool) -> Float[Array, "B S D"]:
        """Returns the queries."""
        raise NotImplementedError

    def score(
        self, query: Float[Array, "*#batch D"], item: Float[Array, "*#batch R E"]
    ) -> Float[Array, "*#batch R"]:
        """Returns the scores of R items for each query, float32."""
        return dot_product(query, item)


def dot_product(
    query: Float[Array, "*#batch D"], item: Float[Array, "*#batch R E"]
) -> Float[Array, "*#batch R"]:
    """Returns the dot products of R items with each query, float32.

    An item's entries past the D-th are read by user encoders and not scored. The products are full
    float32 even on chips that would use bfloat16.
    """
    item = item[..., : query.shape[-1]]
    return jnp.einsum("...d,...rd->...r", query, item, precision=jax.lax.Precision.HIGHEST)


def visible_embeddings(history: History, *, show_padding: bool) -> Float[Array, "B L E"]:
    """Returns the history's vectors, with zeros at padding unless `show_padding`.

    The reference shows some encoders the vector of padding: a random row of the item table, or the
    vector of a grey image.
    """
    if show_padding:
        return history.item_embeddings
    return jnp.where(history.mask[..., None], history.item_embeddings, 0)
