"""Silence of orbax's threads: what fails in one of them is also raised where it is waited for."""

import logging
import sys
import threading
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from absl import logging as absl_logging


@contextmanager
def quiet_orbax() -> Generator[None]:
    """Keeps warnings and tracebacks of orbax's threads and tasks from being printed.

    A failed write or read would be printed for each array; once, where it is raised, is enough.
    """
    loggers = (absl_logging.get_absl_logger(), logging.getLogger("asyncio"))
    hooks = threading.excepthook, sys.unraisablehook

    def in_thread(args: Any) -> None:
        if not _by_orbax(args.exc_traceback):
            hooks[0](args)

    def unraisable(args: Any) -> None:
        # Tensorstore also calls back for reads that have failed, after their loop was closed.
        late = str(args.exc_value) == "Event loop is closed"
        if not (late or _by_orbax(args.exc_traceback)):
            hooks[1](args)

    for logger in loggers:
        logger.addFilter(_is_news)
    threading.excepthook, sys.unraisablehook = in_thread, unraisable
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        for logger in loggers:
            logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    if record.levelno < logging.WARNING:
        return True
    error = record.exc_info[1] if record.exc_info else None
    return not ("orbax" in record.pathname or (error and _by_orbax(error.__traceback__)))


def _by_orbax(trace: TracebackType | None) -> bool:
    files = [frame.filename for frame in traceback.extract_tb(trace)]
    return any("orbax" in file or "tensorstore" in file for file in files)
