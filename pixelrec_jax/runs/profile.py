"""Traces of some steps of a run, for XProf (docs/observe.md)."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax

from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError


class Profiler:
    """Traces the steps `start` to `start + steps - 1`, counted from 1; use as a context manager.

    A run that continues in the middle of them traces the rest, and one that continues after them
    traces nothing. Every process traces its own work.
    """

    def __init__(self, start: int, steps: int, folder: Path):
        """Prepares a trace in `folder`, which may be in object storage; 0 steps trace nothing."""
        self._steps, self._folder = range(max(start, 1), max(start, 1) + steps), folder
        self._local: Path | None = None  # the local folder of a trace in progress
        self._spool = ExitStack()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # The error that ended the run may occur here again, and must not be hidden.
        with suppress(RuntimeError, OSError, UserError) if error else nullcontext():
            self._stop()

    @contextmanager
    def step(self, step: int) -> Generator[None]:
        """Marks the work of the with statement as this step, and starts or ends the trace."""
        if step not in self._steps:
            self._stop()
            yield
            return
        if self._local is None:
            self._start()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def _start(self) -> None:
        self._local = self._folder
        if storage.is_remote(self._folder):
            self._local = Path(self._spool.enter_context(TemporaryDirectory()))
        jax.profiler.start_trace(self._local)

    def _stop(self) -> None:
        if self._local is None:
            return
        try:  # the devices may still run the last step
            jax.block_until_ready(jax.live_arrays())
        finally:
            jax.profiler.stop_trace()
        if self._local != self._folder:
            for source in sorted(self._local.rglob("*")):
                if source.is_file():
                    storage.upload(source, self._folder / source.relative_to(self._local))
        self._spool.close()
        self._local = None
