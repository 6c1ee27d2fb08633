import numpy as np

from pixelrec_jax.data.graph import training_graph
from pixelrec_jax.data.split import leave_one_out
from tests.tiny import interactions_of


def test_edges_by_hand():
    # Users 2 and 3 have nothing to train on; user 4 repeats item 4 in training and item 9 held out.
    sequences = [[5, 6, 7], [1, 2], [3], [4, 4, 2, 4, 9, 9], [2, 5, 1, 8, 3]]
    graph = training_graph(leave_one_out(interactions_of([np.array(s) for s in sequences], 11)))
    np.testing.assert_array_equal(graph.user, [1, 4, 4, 5, 5, 5])
    np.testing.assert_array_equal(graph.item, [5, 2, 4, 1, 2, 5])
    np.testing.assert_array_equal(graph.user_degree, [0, 1, 0, 0, 2, 3])
    np.testing.assert_array_equal(graph.item_degree, [0, 1, 2, 0, 1, 2, 0, 0, 0, 0, 0])
    for array in (graph.user, graph.item, graph.user_degree, graph.item_degree):
        assert array.dtype == np.int32


def test_edges_are_the_distinct_training_pairs():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 30, rng.integers(1, 12)) for _ in range(200)]
    graph = training_graph(leave_one_out(interactions_of(sequences, 30)))
    pairs = {(user, item) for user, s in enumerate(sequences, start=1) for item in s[:-2]}
    assert list(zip(graph.user, graph.item, strict=True)) == sorted(pairs)
