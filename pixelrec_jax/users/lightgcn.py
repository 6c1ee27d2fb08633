"""LightGCN: matrix factorisation on vectors smoothed along a graph (He et al., SIGIR 2020)."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from pixelrec_jax.data.graph import Graph
from pixelrec_jax.data.types import Array
from pixelrec_jax.system.options import Option, Whole
from pixelrec_jax.users.mf import MF

# Edges summed at once: few enough that their vectors stay in a CPU's cache.
_CHUNK = 8192

# The tables of users and of items.
Tables = tuple[Float[jax.Array, "users D"], Float[jax.Array, "N D"]]


class LightGCN(MF):
    """Looks up users and items in tables that were first passed along the graph of interactions.

    A layer passes each vector along one edge.
    """

    layers: int = Option("number of layers", Whole()).field(2)

    uses_graph = True
    item_encoders = ("id",)
    why_not_others = (
        "every step passes the vectors of the whole catalogue along the graph, so all its images "
        "or features would be encoded in every step; use item=id, or user=mf for images and "
        "features"
    )

    def propagate(self, params: dict, graph: Graph) -> dict:
        """Returns the parameters with both tables passed along the graph."""
        user, item = params["user_encoder"], params["item_encoder"]
        # Rows that only make tables divisible have no neighbours and are left out.
        tables = user["table"][: len(graph.user_degree)], item["table"][: len(graph.item_degree)]
        users, items = propagate(self.layers, tables, graph)
        return {
            **params,
            "user_encoder": {**user, "table": users},
            "item_encoder": {**item, "table": items},
        }


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def propagate(layers: int, tables: Tables, graph: Graph) -> Tables:
    """Returns the mean of the tables after 0 to `layers` steps along the edges.

    A step turns a node into the sum of its neighbours, each weighted by (d d')^-1/2, where d and d'
    are the two degrees; a node without neighbours becomes zero. The operator is symmetric: its
    gradient is the same propagation of the cotangents, so only the graph is kept for it.
    """
    degrees = graph.user_degree, graph.item_degree
    # The weight of an edge is a product of one factor per end. Where a degree is 0, sums are zero.
    factors = [jnp.maximum(d, 1).astype(jnp.float32)[:, None] ** -0.5 for d in degrees]

    def scale(tables: Tables) -> Tables:
        return tables[0] * factors[0], tables[1] * factors[1]

    def step(_, carry: tuple[Tables, Tables]) -> tuple[Tables, Tables]:
        tables, total = carry
        tables = scale(_sum_of_neighbours(scale(tables), graph))
        return tables, jax.tree.map(jnp.add, total, tables)

    # A loop, so that the memory does not grow with the number of layers.
    _, total = jax.lax.fori_loop(0, layers, step, (tables, tables))
    return jax.tree.map(lambda x: x / (layers + 1), total)


def _forward(layers: int, tables: Tables, graph: Graph) -> tuple[Tables, Graph]:
    return propagate(layers, tables, graph), graph


def _backward(layers: int, graph: Graph, cotangents: Tables) -> tuple[Tables, None]:
    return propagate(layers, cotangents, graph), None


propagate.defvjp(_forward, _backward)


def _sum_of_neighbours(tables: Tables, graph: Graph) -> Tables:
    """Returns the sums, made by chunks: the vectors of all edges take many times the tables."""
    users, items = tables
    edges = graph.user, graph.item

    def add(
        sums: Tables, edges: tuple[Int[Array, " edges"], Int[Array, " edges"]]
    ) -> tuple[Tables, None]:
        (to_users, to_items), (user, item) = sums, edges
        return (to_users.at[user].add(items[item]), to_items.at[item].add(users[user])), None

    whole = len(graph.user) // _CHUNK * _CHUNK
    chunks = jax.tree.map(lambda x: x[:whole].reshape(-1, _CHUNK), edges)
    sums, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, tables), chunks)
    sums, _ = add(sums, jax.tree.map(lambda x: x[whole:], edges))
    return sums
