"""The graph of users and items: an edge for every training interaction."""

import numpy as np
from flax import struct

from pixelrec_jax.data.split import Split
from pixelrec_jax.data.types import Array


class Graph(struct.PyTreeNode):
    """Edges between users and items, each pair once, in order of users.

    Attributes:
      user, item: int32[edges].
      user_degree: int32[U], number of edges; 0 for users without training interactions.
      item_degree: int32[N], the same of items.
    """

    user: Array
    item: Array
    user_degree: Array
    item_degree: Array


class Resident(struct.PyTreeNode):
    """Arrays that live on the devices beside the state; steps and evaluations are given them once.

    Attributes:
      graph: the edges that LightGCN's vectors pass along, None for all others.
    """

    graph: Graph | None = None


def training_graph(split: Split) -> Graph:
    """Returns the graph of the training interactions, in host memory."""
    interactions, length = split.interactions, split.train_length
    user = np.repeat(np.arange(len(length)), length)
    edge = user * interactions.num_items + interactions.items[split.is_training]
    edge.sort()  # in place, as there may be tens of millions
    edge = edge[np.diff(edge, prepend=-1) > 0]
    user, item = np.divmod(edge, interactions.num_items)
    return Graph(
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        user_degree=np.bincount(user, minlength=interactions.num_users).astype(np.int32),
        item_degree=np.bincount(item, minlength=interactions.num_items).astype(np.int32),
    )
