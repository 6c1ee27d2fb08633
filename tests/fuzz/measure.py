"""What reading one file may cost in memory."""

import gc
import tracemalloc
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


@contextmanager
def at_most(size: int) -> Generator[None]:
    """Raises `AssertionError` if the process grows by more bytes meanwhile, at any moment.

    Linux counts all memory of the process; elsewhere only that of Python and NumPy is counted.
    """
    try:
        _RESET.write_text("5")  # the highest use is counted from now on
    except OSError:
        tracemalloc.start()
        try:
            yield
            grown = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    else:
        before = _kilobytes("VmRSS")
        yield
        grown = 1024 * (_kilobytes("VmHWM") - before)
        if grown > size:
            gc.collect()
    assert grown <= size, f"{grown:,} bytes instead of {size:,}"


def _kilobytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])
