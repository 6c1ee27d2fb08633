"""The memory of this machine."""

import os
import re
from pathlib import Path

_MEMORY = Path("/proc/meminfo")
_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def available_memory() -> int:
    """Returns the bytes of host memory that programs can still take without swapping."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", _MEMORY.read_text())
    except OSError:
        found = None
    if found is None:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit = _LIMIT.read_text().strip()
    except OSError:
        limit = "max"
    free = 1024 * int(found[1])
    return min(free, int(limit)) if limit.isdigit() else free
