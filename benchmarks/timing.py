"""Functions for timing on the present device."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class Epoch(NamedTuple):
    """The timing of an epoch: number of steps, seconds until the first batch, seconds in total."""

    steps: int
    start: float
    total: float


def seconds_per_call(call: Callable[[], Any], calls: int, warmup: int = 2) -> float:
    """Returns the median time of a call that waits for its result."""
    times = []
    for _ in range(warmup + calls):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times[warmup:]))
