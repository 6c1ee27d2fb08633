"""Measures the exact ranking of a whole catalogue beside matrix products in the same run.

python -m benchmarks.ranking [--users=200000] [--items=96000] [--width=512] [--json=FILE]

Needs no dataset, and only the packages jax, flax, numpy, absl, ml-collections and jaxtyping. Every
user has a list of the best and the rank of a target, history masked, as in an evaluation. A user
costs 2 * items * width operations, counted once. Between the batches of the ranking, plain products
of float32 matrices are timed: the faster of two shapes is the machine's rate. On accelerators a
second row has the scores of bfloat16, and counts the ranks that differ from the first row.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict

from pixelrec_jax.evaluation.lists import Retrieved
from pixelrec_jax.evaluation.retrieval import retrieve
from pixelrec_jax.parallel.sharding import CATALOG_SPEC, build_mesh, make_global_arrays
from pixelrec_jax.system.machine import code_commit, peak_of_devices, peak_of_host
from pixelrec_jax.users.encoder import dot_product

_USERS = flags.DEFINE_integer("users", 200_000, "Users to rank for.", lower_bound=1)
_ITEMS = flags.DEFINE_integer("items", 96_000, "Catalogue size.", lower_bound=100)
_WIDTH = flags.DEFINE_integer("width", 512, "Width of queries and items.", lower_bound=1)
_K = flags.DEFINE_integer("k", 10, "Length of the lists.", lower_bound=1, upper_bound=99)
_SEEN = flags.DEFINE_integer("seen", 32, "Masked items of a user.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch_size", 1024, "Users ranked at once.", lower_bound=1)
_CHUNK = flags.DEFINE_integer("chunk", 4096, "Items scored at once.", lower_bound=1)
_RESCORED = flags.DEFINE_multi_integer(
    "rescored", None, "Items scored again after bfloat16, 0 for float32 only; repeatable.", 0
)
_JSON = flags.DEFINE_string("json", "", "File for the result, beside the table.")

_PRODUCTS = 16  # times that products are measured during a ranking
_SQUARE = 2048  # the rows, columns and terms of one of the products

_COLUMNS = ("what", "users", "seconds", "users/s", "GFLOP/s", "of products", "recall", "differ")


def main(_: Sequence[str]) -> None:
    """Prints a line for each ranking as it comes, and the whole result as JSON."""
    device = jax.devices()[0]
    result: dict[str, Any] = {
        "device": f"{jax.device_count()} x {device.device_kind}",
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {m.__name__: m.__version__ for m in (jax, flax, np)},
        "commit": code_commit(Path(__file__).resolve().parent.parent),
        "users": _USERS.value,
        "items": _ITEMS.value,
        "width": _WIDTH.value,
        "k": _K.value,
        "batch_size": _BATCH.value,
        "chunk": _CHUNK.value,
        "rankings": [],
    }
    print(f"{result['device']}, {result['cores']} cores of {result['processor']}", flush=True)
    print(_line(_COLUMNS), flush=True)
    first = None
    for rescored in _RESCORED.value or ([0] if device.platform == "cpu" else [0, 128]):
        row, ranks = measure(rescored)
        first = ranks if first is None else first
        row["ranks_that_differ"] = int(np.count_nonzero(ranks != first))
        result["rankings"].append(row)
        print(_line(_cells(row)), flush=True)
    result["peak_memory"] = {"host": peak_of_host(), "device": peak_of_devices()}
    print(f"peak memory: {peak_of_host() / 1e9:.2f} GB of the host", flush=True)
    text = json.dumps(result)
    print(text, flush=True)
    if _JSON.value:
        Path(_JSON.value).write_text(f"{text}\n")


def measure(rescored: int) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the figures of one ranking of all users, and their ranks int32[users]."""
    users, items, width = _USERS.value, _ITEMS.value, _WIDTH.value
    mesh = build_mesh(ConfigDict({"data": -1, "fsdp": 1, "tensor": 1}))
    rows = -(-items // mesh.size)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((mesh.size, rows, width), np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    catalog = make_global_arrays(vectors, mesh, CATALOG_SPEC)
    targets = np.sort(rng.integers(1, items, users)).astype(np.int32)  # as `Evaluator` orders them

    @jax.jit
    def rank(
        query: jax.Array, catalog: jax.Array, seen: np.ndarray, target: np.ndarray
    ) -> Retrieved:
        sizes = {"num_items": items, "mesh": mesh, "chunk": _CHUNK.value, "rescored": rescored}
        return retrieve(dot_product, query, catalog, seen, target, _K.value, **sizes)

    def draw(start: int) -> tuple[jax.Array, np.ndarray, np.ndarray]:
        """Returns queries, masked items and targets of a batch; the last one is filled up."""
        target = np.resize(targets[start : start + _BATCH.value], _BATCH.value)
        noise = rng.standard_normal((_BATCH.value, width), np.float32)
        # The target's score is two standard deviations above those of others: among the first
        # few percent for half of the users, as for a trained model.
        query = jnp.asarray(noise + 2 * vectors.reshape(-1, width)[target])
        seen = rng.integers(1, items, (_BATCH.value, _SEEN.value)).astype(np.int32)
        return query, np.where(seen == target[:, None], 0, seen), target

    products = _Products(width)
    starts = range(0, users, _BATCH.value)
    pause = -(-len(starts) // _PRODUCTS)
    query, seen, target = draw(0)
    jax.block_until_ready(rank(query, catalog, seen, target))  # compiles
    seconds, ranks = 0.0, []
    for number, start in enumerate(starts):
        if number % pause == 0:
            products.measure()
        query, seen, target = jax.block_until_ready(draw(start))
        before = time.perf_counter()
        found = jax.device_get(rank(query, catalog, seen, target))
        seconds += time.perf_counter() - before
        _check(found, target)
        ranks.append(found.rank)
    operations = 2 * users * items * width
    rank_of = np.concatenate(ranks)[:users]
    row = {
        "rescored": rescored,
        "seconds": seconds,
        "users_per_second": users / seconds,
        "flops_per_second": operations / seconds,
        "products_flops_per_second": products.rate,
        "share_of_products": operations / seconds / products.rate,
        "recall": float(np.mean(rank_of <= _K.value)),
    }
    return row, rank_of


class _Products:
    """The rate of plain float32 matrix products, in several shapes."""

    def __init__(self, width: int):
        product = jax.jit(dot_product)
        self._calls: list[tuple[int, Callable[[], jax.Array]]] = []
        for m, n, terms in ((_BATCH.value, _CHUNK.value, width), (_SQUARE, _SQUARE, _SQUARE)):
            keys = jax.random.split(jax.random.key(0))
            a, b = jax.random.normal(keys[0], (m, terms)), jax.random.normal(keys[1], (n, terms))
            self._calls.append((2 * m * n * terms, lambda a=a, b=b: product(a, b)))
        self._rates: list[list[float]] = [[] for _ in self._calls]
        for _, call in self._calls:
            jax.block_until_ready(call())  # compiles

    def measure(self) -> None:
        """Times each shape a few times."""
        for rates, (operations, call) in zip(self._rates, self._calls, strict=True):
            for _ in range(3):
                before = time.perf_counter()
                jax.block_until_ready(call())
                rates.append(operations / (time.perf_counter() - before))

    @property
    def rate(self) -> float:
        """The median operations a second of the faster shape."""
        return max(float(np.median(rates)) for rates in self._rates)


def _check(found: Retrieved, target: np.ndarray) -> None:
    """Raises `AssertionError` unless each rank is the target's place in the list, or beyond it."""
    hit = found.rank <= found.ids.shape[1]
    np.testing.assert_array_equal(np.any(found.ids == target[:, None], axis=1), hit)
    place = found.rank[hit] - 1
    np.testing.assert_array_equal(found.ids[hit, place], target[hit])


def _cells(row: dict[str, Any]) -> list[str]:
    rescored = row["rescored"]
    return [
        f"bfloat16, {rescored} again" if rescored else "float32",
        f"{_USERS.value:,}",
        f"{row['seconds']:.1f}",
        f"{row['users_per_second']:,.0f}",
        f"{row['flops_per_second'] / 1e9:,.1f}",
        f"{row['share_of_products']:.0%} of {row['products_flops_per_second'] / 1e9:,.1f}",
        f"{row['recall']:.4f}",
        f"{row['ranks_that_differ']}",
    ]


def _line(cells: Sequence[str]) -> str:
    return f"{cells[0]:20}" + "".join(f"{cell:>15}" for cell in cells[1:])


if __name__ == "__main__":
    app.run(main)
