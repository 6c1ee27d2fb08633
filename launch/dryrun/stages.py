"""Says which stage of a dry run is in progress and how long it takes, since each takes minutes."""

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

_EVERY = 60.0  # seconds between two lines of a stage in a file


@contextmanager
def stage(what: str) -> Generator[None]:
    """Shows a stage with the elapsed time on standard error, and then how long it took.

    On a terminal the time runs; in a file there is a line at the beginning and one each minute.
    """
    start = time.monotonic()
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            shown.add_task(what, total=None)
            yield
    else:
        ended = threading.Event()
        thread = threading.Thread(target=_write_lines, args=(what, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
    _say(f"{what}: {time.monotonic() - start:.0f} s")


def _write_lines(what: str, ended: threading.Event) -> None:
    start = time.monotonic()
    _say(f"{what} ...")
    while not ended.wait(_EVERY):
        _say(f"{what} ... {time.monotonic() - start:.0f} s")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
