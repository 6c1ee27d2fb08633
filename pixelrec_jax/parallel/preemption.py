"""Stopping a run between two steps when a signal asks for it."""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

_CALLBACK_SECONDS = 0.05  # after which a callback has ended

# JAX's handler of SIGTERM as a struct sigaction, once `take_from_jax` has stored it.
_OF_JAX = ctypes.create_string_buffer(1024)


def take_from_jax() -> None:
    """Makes SIGTERM end this process as Ctrl-C does, until `stop_request` gives it back to JAX.

    JAX's preemption service handles SIGTERM once processes have joined, but only records it:
    outside of a loop that asks the service, the process would not end.
    """
    ctypes.CDLL(None).sigaction(signal.SIGTERM, None, _OF_JAX)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class StopRequest:
    """Knows whether a signal asked the run to stop (Ctrl-C, or SIGTERM before a preemption).

    One or some of several processes may get the signal, but all must stop after the same step.
    JAX's preemption service, which has its own handler of SIGTERM, lets them agree on that step.
    """

    def __init__(self):
        self._requested, self._several = False, jax.process_count() > 1

    def listen(self) -> None:
        """Sets the handlers of both signals; the caller restores the earlier ones."""
        signal.signal(signal.SIGINT, self)
        if self._several:
            ctypes.CDLL(None).sigaction(signal.SIGTERM, _OF_JAX, None)
        else:
            signal.signal(signal.SIGTERM, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal; a second signal ends the process at once."""
        self._requested = True
        for each in {number, signal.SIGINT}:
            signal.signal(each, signal.default_int_handler)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def applies_to(self, step: int) -> bool:
        """Returns whether to stop after this step; every process must ask once in each step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested


@contextmanager
def stop_request(answer: Callable[[], None] = lambda: None) -> Generator[StopRequest]:
    """Yields a request that SIGINT and SIGTERM set, and that a loop reads between two steps.

    An exception in the middle of a step could be lost in a callback of a library.

    Args:
      answer: called at once for each signal, in another thread: Python's own handlers wait until
        the main thread returns from a step or a compilation.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python allows signal handlers in the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    request.listen()
    try:
        with _answered(answer), _interrupts_kept():
            yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _answered(answer: Callable[[], None]) -> Generator[None]:
    """Calls `answer` in another thread as soon as one of the two signals comes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def listen() -> None:
        while number := os.read(reading, 1)[0]:  # 0 is the end
            if number in (signal.SIGINT, signal.SIGTERM):
                answer()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(writing, b"\0")
        thread.join()
        for pipe in (reading, writing):
            os.close(pipe)


@contextmanager
def _interrupts_kept() -> Generator[None]:
    """Repeats a KeyboardInterrupt that Python drops since it came in a callback, as of its gc."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            before(unraisable)
            return
        timer = threading.Timer(_CALLBACK_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
