"""Timing on the present device."""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def seconds_per_call(call: Callable[[], Any], calls: int, warmup: int = 2) -> float:
    """Returns the median time of a call that waits for its result."""
    times = []
    for _ in range(warmup + calls):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return float(np.median(times[warmup:]))
