"""Stopping a run between two steps, and worker processes that never outlive it."""

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopRequest:
    """Whether somebody asked this process to stop (Ctrl-C, or SIGTERM before a preemption)."""

    def __init__(self):
        self.requested = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal; a second one acts at once."""
        self.requested = True
        signal.signal(number, signal.default_int_handler)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request that a loop looks at between two steps.

    An interrupt in the middle of a step could be swallowed by a callback of a library.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python allows signal handlers in the main thread only
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def set_up_worker(index: int, count: int) -> None:
    """Makes a worker process leave Ctrl-C to its parent, and end when that is killed (Linux)."""
    del index, count  # what grain tells every worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
