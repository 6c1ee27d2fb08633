"""The user-item graph: one edge for each pair in the training interactions."""

from typing import TYPE_CHECKING

import jax
import numpy as np
from flax import struct

from pixelrec_jax.data.types import Array

if TYPE_CHECKING:  # models import this module, and run without the libraries that read datasets
    from pixelrec_jax.data.split import Split


class Graph(struct.PyTreeNode):
    """Edges between users and items, each pair once, sorted by user and item.

    Attributes:
      user, item: int32[edges], the two ends of each edge.
      user_degree: int32[U], the number of edges of each user.
      item_degree: int32[N], the number of edges of each item.
    """

    user: Array
    item: Array
    user_degree: Array
    item_degree: Array


class Resident(struct.PyTreeNode):
    """Constant arrays that stay on the devices and are arguments of steps and evaluations.

    Attributes:
      graph: the graph that LightGCN propagates vectors on; None for all other models.
      activation: [R, ...], the activations of items by index, with their rows sharded over all
        devices; None where batches bring what item encoders read.
    """

    graph: Graph | None = None
    activation: jax.Array | None = None


def training_graph(split: "Split") -> Graph:
    """Returns the graph of the training interactions, in host memory."""
    interactions, length = split.interactions, split.train_length
    user = np.repeat(np.arange(len(length)), length)
    edge = user * interactions.num_items + interactions.items[split.is_training]
    edge.sort()  # in place: there may be tens of millions of edges
    edge = edge[np.diff(edge, prepend=-1) > 0]
    user, item = np.divmod(edge, interactions.num_items)
    return Graph(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        user_degree=np.bincount(user, minlength=interactions.num_users).astype(np.int32),
        item_degree=np.bincount(item, minlength=interactions.num_items).astype(np.int32),
    )
