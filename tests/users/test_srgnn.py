from itertools import pairwise

import jax
import numpy as np
import pytest

from pixelrec_jax.users.srgnn import session_graph


def means_over_neighbours(items, vectors):
    """Returns each slot's means over distinct predecessors and successors, in plain Python."""
    edges = {(u, v) for u, v in pairwise(items) if u}
    vector = dict(zip(items, vectors, strict=True))

    def mean(neighbours):
        return np.mean([vector[n] for n in neighbours] or [np.zeros(vectors.shape[1])], axis=0)

    before = [mean([u for u, v in edges if v == item]) for item in items]
    after = [mean([v for u, v in edges if u == item]) for item in items]
    return before, after


@pytest.mark.numerical
def test_edges_join_distinct_items():
    rng = np.random.default_rng(0)
    items = rng.integers(1, 5, (30, 10))  # many repeats
    items[np.arange(10) < rng.integers(0, 10, (30, 1))] = 0
    vectors = rng.normal(size=(5, 3)).astype(np.float32)[items]
    expected = zip(*map(means_over_neighbours, items, vectors), strict=True)
    for edges, means in zip(jax.jit(session_graph)(items, items > 0), expected, strict=True):
        real = items > 0
        actual = (edges @ vectors)[real]
        np.testing.assert_allclose(actual, np.stack(means)[real], rtol=1e-5, atol=1e-6)
