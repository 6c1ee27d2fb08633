"""Goodput: how the time of a run is spent, and which fraction of it is training steps."""

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import jax

PHASES = ("input", "step", "evaluation", "save", "compile", "lost", "other")
_COMPILATION = "/jax/core/compile/"  # events of tracing, lowering and compiling
_T = TypeVar("_T")


class Goodput:
    """Adds up the seconds of a run by phase, over all its restarts; use as a context manager.

    Compilation counts as "compile" wherever this thread compiles. "lost" is the time of steps that
    a restart repeats, and "other" is all time outside of phases. The time of a killed run after its
    last record is unknown, and so is the time between two runs.
    """

    def __init__(self, kept: Mapping[str, float], dropped: Mapping[str, float]):
        """Continues from the last kept and the last dropped record of metrics.jsonl, or from {}."""
        self._seconds = {name: kept.get(f"time/{name}", 0.0) for name in PHASES}
        self._seconds["lost"] += max(0.0, _total(dropped) - _total(kept))
        self._phase, self._since = "other", time.perf_counter()
        self._thread = threading.get_ident()
        self._compiled: list[tuple[float, float]] = []  # disjoint (start, end) in order

    def __enter__(self) -> "Goodput":
        jax.monitoring.register_event_duration_secs_listener(self._on_event)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_event)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Counts the time in the with statement as this phase, except that of phases inside it."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def waits(self, items: Iterable[_T], name: str = "input") -> Iterator[_T]:
        """Yields the items and counts the time until each one arrives as this phase."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    @property
    def phase_now(self) -> str:
        """The phase that the run is in."""
        return self._phase

    @property
    def phase_seconds(self) -> float:
        """How long the run has been in this phase."""
        return time.perf_counter() - self._since

    def seconds(self, name: str) -> float:
        """Returns the seconds of a phase until now, without those of compilation."""
        return self._seconds[name] + (self.phase_seconds if name == self._phase else 0.0)

    @property
    def trained(self) -> float:
        """The seconds of input and steps until now."""
        return self.seconds("input") + self.seconds("step")

    def scalars(self) -> dict[str, float]:
        """Returns the seconds by phase and in total since the run began, and each fraction."""
        self._switch(self._phase)
        total = sum(self._seconds.values())
        scalars = {f"time/{name}": seconds for name, seconds in self._seconds.items()}
        scalars["time/total"] = total
        fractions = {f"time/{name}_fraction": x / total for name, x in self._seconds.items()}
        return scalars | fractions

    def _switch(self, name: str) -> str:
        now, previous = time.perf_counter(), self._phase
        self._seconds[previous] += now - self._since
        self._phase, self._since = name, now
        self._compiled.clear()
        return previous

    def _on_event(self, event: str, duration_secs: float, **_: str | int) -> None:
        if not event.startswith(_COMPILATION) or threading.get_ident() != self._thread:
            return
        # Tracing can be nested: the event of an outer function includes those of inner ones.
        end = time.perf_counter()
        start = max(end - duration_secs, self._since)
        while self._compiled and self._compiled[-1][0] >= start:
            inner = self._compiled.pop()
            self._move(inner[0] - inner[1])
        if self._compiled:
            start = max(start, self._compiled[-1][1])
        self._compiled.append((start, end))
        self._move(end - start)

    def _move(self, seconds: float) -> None:
        self._seconds["compile"] += seconds
        self._seconds[self._phase] -= seconds


def _total(record: Mapping[str, float]) -> float:
    return record.get("time/total", 0.0)
