"""A recommender is an item encoder and a user encoder; training and ranking call the same two."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from pixelrec_jax.data.graph import Resident
from pixelrec_jax.data.mask_item import mask_item_of
from pixelrec_jax.data.tasks import task_of
from pixelrec_jax.data.types import Array, Batch, History, Items, gather_slots
from pixelrec_jax.items import build_item_encoder
from pixelrec_jax.items.encoder import ItemEncoder
from pixelrec_jax.items.pixel import PixelEncoder
from pixelrec_jax.parallel.tables import EmbeddingLookup, Lookups, split_by_columns
from pixelrec_jax.system.errors import UserError, nearest
from pixelrec_jax.users import USER_ENCODERS
from pixelrec_jax.users.encoder import UserEncoder


class Recommender(nn.Module):
    """Scores items for users: score(encode_users(history of item vectors), item vectors).

    Attributes:
      item_encoder: maps items to vectors.
      user_encoder: maps histories to queries and scores items for them.
    """

    item_encoder: ItemEncoder
    user_encoder: UserEncoder

    def propagate(self, variables: dict, resident: Resident, mesh: Mesh) -> dict:
        """Returns the variables to encode with, made of those of the state.

        Without a graph they are the same. LightGCN's tables pass along the edges of the graph
        first, once in a training step and once in a ranking of the whole catalogue.
        """
        if resident.graph is None:
            return variables
        params = split_by_columns(variables["params"], mesh)
        return {**variables, "params": self.user_encoder.propagate(params, resident.graph)}

    def embedding_lookups(
        self, *, items: Items | None = None, user: Int[Array, "*users"] | None = None
    ) -> Lookups:
        """Returns the rows that items and users read, by the path of the table."""
        if self.user_encoder.uses_graph:
            return {}  # every row may reach any other
        found: dict[tuple[str, ...], EmbeddingLookup] = {}
        path = self.item_encoder.id_table
        if items is not None and path is not None:
            # The slots of a shard are distinct items; shards may share some.
            found["item_encoder", *path] = EmbeddingLookup(items.id, unique_ids=len(items.id) == 1)
        if user is not None and self.user_encoder.has_table:
            found["user_encoder", "table"] = EmbeddingLookup(user, unique_ids=False)
        return found

    def encode_items(self, items: Items, *, train: bool = False) -> Float[Array, "G U E"]:
        """Returns the items' vectors, float32, and encodes each slot once.

        Raises:
          ValueError: the shapes of the items do not fit each other.
        """
        items.check()
        shards, slots = items.id.shape
        flat = jax.tree.map(lambda x: x.reshape(shards * slots, *x.shape[2:]), items)
        return self.item_encoder(flat, train=train).reshape(shards, slots, -1)

    def encode_users(self, history: History, *, train: bool = False) -> Float[Array, "B S D"]:
        """Returns float32 queries, S = L or 1; the last one describes the user now.

        Raises:
          ValueError: the shapes of the history do not fit each other.
        """
        history.check()
        return self.user_encoder(history, train=train)

    def score(
        self, query: Float[Array, "*#batch D"], item: Float[Array, "*#batch R E"]
    ) -> Float[Array, "*#batch R"]:
        """Returns the scores of R items for each query, float32."""
        return self.user_encoder.score(query, item)

    def __call__(
        self, batch: Batch, *, train: bool
    ) -> tuple[Float[Array, "G B T D"], Float[Array, "G U E"]]:
        """Returns a query for every target, and the items' vectors, both float32.

        Losses score the items for the queries.

        Raises:
          ValueError: the shapes of the batch are wrong or do not fit each other.
          UserError: the user encoder makes fewer queries than the task has targets.
        """
        batch.check()
        item = self.encode_items(batch.items, train=train)
        (embeddings,) = gather_slots(item, batch.history)
        shards, rows, targets = batch.positive.shape
        history = History(
            item_embeddings=embeddings,
            item=batch.history,
            user=batch.user,
            time=batch.time,
            row=batch.row_numbers(),
        )
        flat = jax.tree.map(lambda x: x.reshape(shards * rows, *x.shape[2:]), history)
        query = self.encode_users(flat, train=train)
        if query.shape[1] < targets:
            raise UserError(
                f"the task has {targets} targets for a history, but this user encoder makes one "
                "query of it; use task.name=prefixes, rest_of_window or pairs"
            )
        return query[:, -targets:].reshape(shards, rows, targets, -1), item


def build_recommender(config: ConfigDict, *, num_items: int, num_users: int) -> Recommender:
    """Returns the recommender that a config describes.

    Args:
      config: a whole config; `user`, `item`, `task` and `width` are read.
      num_items: N, padding included. A task with a mask item adds it as item N.
      num_users: number of users, padding included.

    Raises:
      UserError: an unknown name, or options that do not fit each other.
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
            mask_item=mask_item_of(task_of(config), num_items),
            width=config.width,
        ),
        user_encoder=encoder(
            num_users=num_users, width=config.width, dtype=jnp.dtype(user.dtype), **options
        ),
    )


def trainable_filter(model: Recommender) -> Callable[[str], bool]:
    """Returns a function that says whether the parameter at a path "a/b/c" is trained.

    `item.trainable` names the trained blocks of the backbone; all other parameters are trained.
    """
    if not isinstance(model.item_encoder, PixelEncoder):
        return lambda path: True
    trainable_blocks = model.item_encoder.trainable_blocks

    def is_trainable(path: str) -> bool:
        keys = path.split("/")
        return keys[:2] != ["item_encoder", "backbone"] or keys[2] in trainable_blocks

    return is_trainable
