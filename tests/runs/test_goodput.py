"""Where time goes is added up by phase, over restarts, and compilation is found wherever it is."""

import threading
import time

import jax
import jax.numpy as jnp
import pytest

from pixelrec_jax.runs.goodput import PHASES, Goodput


class _Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    return _Clock(monkeypatch)


def test_every_second_is_of_one_phase(clock):
    goodput = Goodput({}, {})
    clock.passes(1)
    with goodput.phase("step"):
        clock.passes(4)
        with goodput.phase("save"):
            clock.passes(2)
        clock.passes(1)
    with goodput.phase("evaluation"):
        clock.passes(8)
        scalars = goodput.scalars()
    seconds = {"other": 1, "step": 5, "save": 2, "evaluation": 8, "input": 0, "compile": 0}
    for name, value in {**seconds, "lost": 0}.items():
        assert scalars[f"time/{name}"] == value
        assert scalars[f"time/{name}_fraction"] == value / 16
    assert scalars["time/total"] == 16
    assert set(scalars) == {"time/total"} | {
        f"time/{name}{end}" for name in PHASES for end in ("", "_fraction")
    }


def test_a_phase_ends_with_an_error(clock):
    def fail():
        clock.passes(1)
        raise KeyError

    goodput = Goodput({}, {})
    with pytest.raises(KeyError), goodput.phase("step"):
        fail()
    clock.passes(2)
    assert goodput.scalars()["time/step"] == 1
    assert goodput.scalars()["time/other"] == 2


def test_waiting_for_the_next_batch_is_input(clock):
    def batches():
        for batch in "abc":
            clock.passes(3)
            yield batch

    goodput, seen = Goodput({}, {}), []
    for batch in goodput.waits(batches()):
        clock.passes(10)
        seen.append(batch)
    assert seen == ["a", "b", "c"]
    assert goodput.scalars()["time/input"] == 9
    assert goodput.scalars()["time/other"] == 30


def test_a_restart_goes_on_and_loses_what_is_done_again(clock):
    first = Goodput({}, {})
    records = []
    for _ in range(3):
        with first.phase("step"):
            clock.passes(5)
        records.append(first.scalars())
    second = Goodput(records[0], records[2])  # the checkpoint was at the first record
    with second.phase("step"):
        clock.passes(5)
    scalars = second.scalars()
    assert scalars["time/step"] == 10
    assert scalars["time/lost"] == 10
    assert scalars["time/total"] == 20
    third = Goodput({}, scalars).scalars()  # all of it, what was lost before included
    assert third["time/lost"] == third["time/total"] == 20
    assert Goodput(scalars, {}).scalars()["time/lost"] == 10  # nothing is done again


def test_compilation_is_counted_wherever_it_happens():
    @jax.jit
    def inner(x):
        time.sleep(0.2)  # of tracing, which is part of the tracing of `outer`
        return x + 1

    @jax.jit
    def outer(x):
        time.sleep(0.1)
        return inner(x) * 2

    with Goodput({}, {}) as goodput:
        start = time.perf_counter()
        with goodput.phase("step"):
            jax.block_until_ready(outer(jnp.ones(3)))
        between = time.perf_counter() - start
        scalars = goodput.scalars()
        assert 0.3 <= scalars["time/compile"] <= between
        assert 0 <= scalars["time/step"] <= between - 0.3
        with goodput.phase("step"):
            outer(jnp.ones(3))
        assert goodput.scalars()["time/compile"] == scalars["time/compile"]


def test_compilation_elsewhere_is_not_waited_for():
    def compile_something():
        jax.jit(lambda x: x * 3)(jnp.ones(5))

    with Goodput({}, {}) as goodput:
        thread = threading.Thread(target=compile_something)
        thread.start()
        thread.join()
        assert goodput.scalars()["time/compile"] == 0
    compile_something()  # closed: no listener is left
    assert goodput.scalars()["time/compile"] == 0
