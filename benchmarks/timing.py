"""Functions for timing on the present device."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from pixelrec_jax.system.console import status


class Epoch(NamedTuple):
    """The timing of an epoch: number of steps, seconds until the first batch, seconds in total."""

    steps: int
    start: float
    total: float


@contextmanager
def stage(what: str) -> Generator[None]:
    """Says what a benchmark does from here to the end of the block, and then how long it took."""
    start = time.perf_counter()
    print(f"{what} ...", file=sys.stderr, flush=True)
    with status(what):
        yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


def seconds_per_call(call: Callable[[], Any], calls: int, warmup: int = 2) -> float:
    """Returns the median time of a call that waits for its result."""
    times = []
    for _ in range(warmup + calls):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times[warmup:]))
