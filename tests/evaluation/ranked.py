"""Rankings of tables: by the program on several meshes, and by NumPy."""

import jax
import numpy as np
from ml_collections import ConfigDict

from pixelrec_jax.evaluation.retrieval import retrieve
from pixelrec_jax.parallel.sharding import CATALOG_SPEC, build_mesh, make_global_arrays, num_shards

MESHES = {
    "1 device": (1, {"data": -1, "fsdp": 1, "tensor": 1}),
    "8 devices": (8, {"data": -1, "fsdp": 1, "tensor": 1}),
    "2 x 2 x 2": (8, {"data": 2, "fsdp": 2, "tensor": 2}),
}


def mesh_of(name):
    devices, axes = MESHES[name]
    return build_mesh(ConfigDict(axes), jax.devices()[:devices])


def sharded(table: np.ndarray, mesh) -> jax.Array:
    """Returns a table [N, D] row-sharded over the mesh and padded to whole shards."""
    shards = num_shards(mesh, CATALOG_SPEC)
    rows = -(-len(table) // shards)
    padded = np.full((shards * rows, table.shape[1]), 1e6, np.float32)  # would win if it counted
    padded[: len(table)] = table
    return make_global_arrays(padded.reshape(shards, rows, -1), mesh, CATALOG_SPEC)


def dense_ranking(query, table, seen, target, k):
    """Returns the same results by sorting all items; ties: lower id first."""
    ids, ranks = [], []
    for vector, mask, goal in zip(query, seen, target, strict=True):
        scores = table @ vector
        scores[0] = -np.inf
        scores[mask] = -np.inf
        order = np.lexsort((np.arange(len(scores)), -scores))
        ids.append(order[:k])
        ranks.append(int(np.flatnonzero(order == goal)[0]) + 1)
    return np.array(ids), np.array(ranks)


def ranker(score, mesh, *, num_items, **options):
    """Returns one program, as in an evaluation: (query, table [N, D], seen, target) -> found."""

    @jax.jit
    def run(query, catalog, seen, target):
        sizes = {"num_items": num_items, "mesh": mesh}
        return retrieve(score, query, catalog, seen, target, **sizes, **options)

    def rank(query, table, seen, target):
        return jax.device_get(run(query, sharded(table, mesh), seen, target))

    return rank
