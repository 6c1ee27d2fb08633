"""A recommender is an item encoder and a user encoder; training and ranking call the same two."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from pixelrec_jax.data.graph import Resident
from pixelrec_jax.data.tasks import task_of
from pixelrec_jax.data.types import Array, Batch, History, Items, gather_slots
from pixelrec_jax.items import build_item_encoder, id_table
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.parallel.tables import EmbeddingLookup, Lookups, split_by_columns
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.users import USER_ENCODERS
from pixelrec_jax.users.encoder import UserEncoder


class Recommender(nn.Module):
    """Scores items for users: score(encode_users(history of item vectors), item vectors).

    Attributes:
      item_encoder: Items with leading axis M -> float32[M, E].
      user_encoder: History -> queries float32[B, S, D].
    """

    item_encoder: nn.Module
    user_encoder: UserEncoder

    def propagate(self, variables: dict, resident: Resident, mesh: Mesh) -> dict:
        """Returns the variables to encode with, for those of the state.

        They are the same, but for LightGCN: its tables pass along the edges of the graph first,
        once in a training step and once for a ranking of the whole catalogue.
        """
        if resident.graph is None:
            return variables
        params = split_by_columns(variables["params"], mesh)
        return {**variables, "params": self.user_encoder.propagate(params, resident.graph)}

    def embedding_lookups(
        self, *, items: Items | None = None, user: Int[Array, "*users"] | None = None
    ) -> Lookups:
        """Returns which rows of which tables items [G, U] and users read."""
        if self.user_encoder.uses_graph:
            return {}  # every row may reach any other
        found: dict[tuple[str, ...], EmbeddingLookup] = {}
        path = id_table(self.item_encoder)
        if items is not None and path is not None:
            # The slots of a shard are distinct items; shards may share some.
            found["item_encoder", *path] = EmbeddingLookup(items.id, unique_ids=len(items.id) == 1)
        if user is not None and self.user_encoder.has_table:
            found["user_encoder", "table"] = EmbeddingLookup(user, unique_ids=False)
        return found

    def encode_items(self, items: Items, *, train: bool = False) -> Float[Array, "G U E"]:
        """Returns the items' vectors, float32; each slot is encoded once."""
        items.check()
        shards, slots = items.id.shape
        flat = jax.tree.map(lambda x: x.reshape(shards * slots, *x.shape[2:]), items)
        return self.item_encoder(flat, train=train).reshape(shards, slots, -1)

    def encode_users(self, history: History, *, train: bool = False) -> Float[Array, "B S D"]:
        """Returns float32 queries, S = L or 1; the last one is the user now."""
        history.check()
        return self.user_encoder(history, train=train)

    def score(
        self, query: Float[Array, "*#batch D"], item: Float[Array, "*#batch R E"]
    ) -> Float[Array, "*#batch R"]:
        """Returns the score of each of R items for its query, float32."""
        return self.user_encoder.score(query, item)

    def __call__(
        self, batch: Batch, *, train: bool
    ) -> tuple[Float[Array, "G B T D"], Float[Array, "G U E"]]:
        """Returns a query for every target, and the items' vectors, both float32.

        Losses score the ones against the others.

        Raises:
          ValueError: the shapes of the batch are wrong or do not fit each other.
        """
        batch.check()
        item = self.encode_items(batch.items, train=train)
        (embeddings,) = gather_slots(item, batch.history)
        shards, rows, targets = batch.positive.shape
        history = History(
            item_embeddings=embeddings, item=batch.history, user=batch.user, time=batch.time
        )
        flat = jax.tree.map(lambda x: x.reshape(shards * rows, *x.shape[2:]), history)
        query = self.encode_users(flat, train=train)
        if query.shape[1] < targets:
            raise UserError(
                f"the task has {targets} targets for a history, but this user encoder makes one "
                "query of it; use task.name=prefixes, rest_of_window or pairs"
            )
        return query[:, -targets:].reshape(shards, rows, targets, -1), item


def build(config: ConfigDict, *, num_items: int, num_users: int) -> Recommender:
    """Builds the recommender that a config describes, for N = `num_items` and its users.

    Both numbers count padding. Tasks that mask items add the mask as item N.
    """
    user = config.user
    if user.name not in USER_ENCODERS:
        raise UserError(f"unknown user encoder {user.name!r}{nearest(user.name, USER_ENCODERS)}")
    options = {key: value for key, value in user.items() if key not in ("name", "dtype")}
    encoder = USER_ENCODERS[user.name]
    encoder.check_item(config.item)
    return Recommender(
        item_encoder=build_item_encoder(
            config.item,
            num_items=num_items,
            has_mask=task_of(config).uses_mask_item,
            width=config.width,
        ),
        user_encoder=encoder(
            num_users=num_users, width=config.width, dtype=jnp.dtype(user.dtype), **options
        ),
    )


def trainable_filter(model: Recommender) -> Callable[[str], bool]:
    """Returns whether the parameter at an "a/b/c" path is trained under `item.trainable`."""
    if not isinstance(model.item_encoder, PixelEncoder):
        return lambda path: True
    trainable_blocks = model.item_encoder.trainable_blocks

    def is_trainable(path: str) -> bool:
        parts = path.split("/")
        return parts[:2] != ["item_encoder", "backbone"] or parts[2] in trainable_blocks

    return is_trainable
