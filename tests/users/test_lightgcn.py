from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pixelrec_jax.data.graph import Graph, training_graph
from pixelrec_jax.data.split import leave_one_out
from pixelrec_jax.parallel.sharding import build_mesh
from pixelrec_jax.recommender import build_recommender
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.training.experiment import build_experiment
from pixelrec_jax.users import lightgcn
from pixelrec_jax.users.lightgcn import propagate
from tests.steps import draw_state, place_state, run_steps
from tests.tiny import interactions_of, tiny_config

USERS, ITEMS, WIDTH = 20, 30, 16


@pytest.fixture(scope="module")
def sequences():
    """Users, some without training data, with repeats; some items occur for no user."""
    rng = np.random.default_rng(0)
    return [rng.integers(1, ITEMS - 5, rng.integers(1, 12)) for _ in range(USERS - 1)]


@pytest.fixture(scope="module")
def graph(sequences):
    return training_graph(leave_one_out(interactions_of(sequences, ITEMS)))


@pytest.fixture(scope="module")
def tables():
    rng = np.random.default_rng(1)
    return tuple(rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (USERS, ITEMS))


def dense_operator(sequences, layers: int) -> np.ndarray:
    """Returns the propagation as a matrix float64[U + N, U + N], in plain NumPy."""
    adjacency = np.zeros((USERS + ITEMS,) * 2)
    for user, sequence in enumerate(sequences, start=1):
        adjacency[user, USERS + sequence[:-2]] = 1
    adjacency += adjacency.T
    degree = adjacency.sum(axis=0)
    weight = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    step = weight[:, None] * adjacency * weight
    powers = [np.linalg.matrix_power(step, layer) for layer in range(layers + 1)]
    return np.mean(powers, axis=0)


def assert_close(actual, expected):
    assert np.abs(np.concatenate(actual) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_graph_has_isolated_nodes_and_a_remainder(graph):
    assert (graph.user_degree[1:] == 0).any()
    assert (graph.item_degree[1:] == 0).any()
    assert len(graph.user) % 4


@pytest.mark.numerical
@pytest.mark.parametrize(("layers", "chunk"), [(0, 4), (1, 1000), (2, 1), (3, 4)])
def test_propagation_is_a_product_with_the_dense_matrix(
    sequences, graph, tables, layers, chunk, monkeypatch
):
    monkeypatch.setattr(lightgcn, "_CHUNK", chunk)
    actual = jax.jit(partial(propagate, layers))(tables, graph)
    assert_close(actual, dense_operator(sequences, layers) @ np.concatenate(tables))
    for before, after, degree in zip(
        tables, actual, (graph.user_degree, graph.item_degree), strict=True
    ):
        np.testing.assert_allclose(after[degree == 0], before[degree == 0] / (layers + 1), 1e-6)


@pytest.mark.numerical
def test_gradient_is_a_product_with_the_transposed_matrix(sequences, graph, tables, monkeypatch):
    monkeypatch.setattr(lightgcn, "_CHUNK", 4)

    def loss(tables):
        return sum(jnp.sum(jnp.sin(x)) for x in propagate(2, tables, graph))

    operator = dense_operator(sequences, 2)
    expected = operator.T @ np.cos(operator @ np.concatenate(tables))
    assert_close(jax.jit(jax.grad(loss))(tables), expected)


def test_tables_sharded_by_columns_are_propagated_without_communication(graph, tables):
    mesh = build_mesh(tiny_config("user=lightgcn,item=id,dataset=toy").mesh)
    columns = NamedSharding(mesh, PartitionSpec(None, "data"))
    replicated = NamedSharding(mesh, PartitionSpec())
    spread = jax.device_put(tables, columns), jax.device_put(graph, replicated)
    compiled = jax.jit(partial(propagate, 2)).lower(*spread).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in compiled.as_text()
    actual = compiled(*spread)
    assert all(x.sharding.is_equivalent_to(columns, 2) for x in actual)
    jax.tree.map(np.testing.assert_array_equal, actual, propagate(2, jax.device_put(tables), graph))


@pytest.mark.numerical
def test_training_on_one_device_is_training_on_eight(toy_dataset):
    config = tiny_config("user=lightgcn,item=id,dataset=toy", toy_dataset)
    one = build_experiment(config, devices=jax.devices()[:1])
    start = draw_state(one)
    expected, _ = run_steps(one, 3, place_state(start, one))
    assert expected[-1] != expected[0]
    config.mesh.update({"data": 2, "fsdp": 4})
    eight = build_experiment(config)
    losses, _ = run_steps(eight, 3, place_state(start, eight))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_memory_is_that_of_a_few_tables_and_not_of_all_edges():
    """Pixel1M's graph: the vectors of all its edges would take 17 times the tables."""
    users, items, edges, width = 1_000_000, 100_000, 19_000_000, 256

    def integers(size):
        return jax.ShapeDtypeStruct((size,), jnp.int32)

    graph = Graph(integers(edges), integers(edges), integers(users), integers(items))
    tables = tuple(jax.ShapeDtypeStruct((n, width), jnp.float32) for n in (users, items))

    def gradient(tables, graph):
        return jax.grad(lambda t: sum(jnp.sum(x**2) for x in propagate(2, t, graph)))(tables)

    memory = jax.jit(gradient).lower(tables, graph).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * (users + items) * width * 4


@pytest.mark.parametrize("item", ["features", "id+features", "semantic_ids", "clip_vit_b32"])
def test_anything_but_ids_is_one_clear_line(item):
    config = tiny_config(f"user=lightgcn,item={item},dataset=custom")
    with pytest.raises(UserError, match="use item=id, or user=mf") as error:
        build_recommender(config, num_items=10, num_users=5)
    assert "\n" not in str(error.value)
