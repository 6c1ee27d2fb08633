"""Speed and utilisation as the log shows them."""

import time

import numpy as np
import pytest

from pixelrec_jax.data.types import Batch, Items
from pixelrec_jax.runs.progress import Speed


def _batch():
    slot = np.ones((1, 2, 3), np.int32)
    return Batch(
        items=Items(id=np.array([[0, 1, 2]])),
        user=np.array([[1, 0]]),
        history=slot,
        positive=slot,
        negative=slot[..., None],
        weight=slot,
    )


@pytest.fixture
def two_seconds(monkeypatch):
    now = iter((0.0, 2.0, 2.0, 4.0, 4.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))


def test_utilisation_is_operations_a_second_and_device_over_the_peak(two_seconds):
    speed = Speed(devices=4, peak=1e12)
    for _ in range(2):
        speed.count(_batch(), flops=8e12)
    scalars = speed.read()
    assert scalars["train/tflops_per_device"] == 2 * 8 / 2 / 4
    assert scalars["train/mfu"] == scalars["train/tflops_per_device"]
    speed.count(_batch(), flops=8e12)
    assert speed.read()["train/mfu"] == 1.0  # of the steps since the last reading


def test_without_a_known_peak_there_is_no_mfu(two_seconds):
    speed = Speed(devices=2)
    speed.count(_batch(), flops=4e12)
    scalars = speed.read()
    assert scalars["train/tflops_per_device"] == 1.0
    assert "train/mfu" not in scalars
    speed.count(_batch())
    assert "train/tflops_per_device" not in speed.read()
