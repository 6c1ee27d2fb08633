"""Traces are of the steps that were asked for, and close whatever happens."""

import gzip
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import pytest

from pixelrec_jax.runs.profile import Profiler


@pytest.fixture
def calls(monkeypatch):
    """Which calls the profiler of JAX gets, and which steps are done between."""
    made = []

    @contextmanager
    def annotation(name, *, step_num):
        made.append((name, step_num))
        yield

    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: made.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append("stop"))
    monkeypatch.setattr(jax.profiler, "StepTraceAnnotation", annotation)
    return made


def _run(profiler, steps):
    with profiler:
        for step in steps:
            with profiler.step(step):
                pass


@pytest.mark.parametrize(
    ("start", "steps", "run", "traced"),
    [
        (3, 2, range(1, 7), [3, 4]),
        (0, 2, range(1, 7), [1, 2]),
        (3, 9, range(1, 6), [3, 4, 5]),  # the run ends first
        (3, 3, range(5, 8), [5]),  # a restart continues within
        (3, 2, range(5, 8), []),  # and behind
        (3, 0, range(1, 7), []),
    ],
)
def test_the_steps_asked_for_are_traced(tmp_path, calls, start, steps, run, traced):
    _run(Profiler(start, steps, tmp_path), run)
    marks = [("train", step) for step in traced]
    assert calls == (["start", *marks, "stop"] if traced else [])


def test_a_run_that_fails_keeps_its_trace_and_its_error(tmp_path, calls, monkeypatch):
    def fail(_):
        calls.append("wait")
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(jax, "block_until_ready", fail)
    profiler = Profiler(1, 5, tmp_path)
    with pytest.raises(KeyError), profiler, profiler.step(1):
        raise KeyError
    assert calls == ["start", ("train", 1), "wait", "stop"]


def test_a_trace_has_the_steps_by_number(tmp_path):
    step, x = jax.jit(lambda x: x @ x), jnp.ones((64, 64))
    with Profiler(2, 2, tmp_path / "profile") as profiler:
        for number in range(1, 6):
            with profiler.step(number):
                x = step(x)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    events = gzip.decompress(next(trace.parent.glob("*.trace.json.gz")).read_bytes()).decode()
    assert events.count('"step_num":"2"') == events.count('"step_num":"3"') == 1
    assert '"step_num":"1"' not in events
    assert '"step_num":"4"' not in events
