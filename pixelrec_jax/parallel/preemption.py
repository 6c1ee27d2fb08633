"""Stopping a run between two steps, and worker processes that never outlive it."""

import ctypes
import os
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import jax
from jax.experimental import multihost_utils

# What JAX does with SIGTERM, a struct sigaction, once `take_from_jax` has kept it.
_OF_JAX = ctypes.create_string_buffer(1024)


def take_from_jax() -> None:
    """Lets SIGTERM end this process as Ctrl-C does, but where `stop_request` gives it back to JAX.

    JAX's preemption service takes it when processes join, and only remembers it: outside of the
    loop that asks, nothing would end.
    """
    ctypes.CDLL(None).sigaction(signal.SIGTERM, None, _OF_JAX)
    signal.signal(signal.SIGTERM, signal.default_int_handler)


class StopRequest:
    """Whether somebody asked the run to stop (Ctrl-C, or SIGTERM before a preemption).

    Of several processes one is asked, or some. All must stop after the same step, on which JAX's
    preemption service lets them agree in the background; it has its own handler of SIGTERM.
    """

    def __init__(self):
        self._requested, self._several = False, jax.process_count() > 1

    def listen(self) -> None:
        """Takes the signals; the caller puts back what was there."""
        signal.signal(signal.SIGINT, self)
        if self._several:
            ctypes.CDLL(None).sigaction(signal.SIGTERM, _OF_JAX, None)
        else:
            signal.signal(signal.SIGTERM, self)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal; a second one acts at once."""
        self._requested = True
        signal.signal(number, signal.default_int_handler)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def applies_to(self, step: int) -> bool:
        """Whether to stop after this step; every process must ask once in every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._requested


@contextmanager
def stop_request() -> Generator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request that a loop looks at between two steps.

    An interrupt in the middle of a step could be swallowed by a callback of a library.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python allows signal handlers in the main thread only
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    request.listen()
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
