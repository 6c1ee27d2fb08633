"""How many files a process may keep open; systems begin with few: 256 on a Mac, 1,024 on Linux."""

import resource
from contextlib import suppress

_SHARE = 4  # of the files that a process may open, one user gets at most one in so many


def most_open(wanted: int) -> int:
    """Returns how many files may be kept open at once by one part of a program, `wanted` at most.

    If the system allows it, the limit of the process is raised first.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _SHARE * wanted:
        raised = _SHARE * wanted if hard == resource.RLIM_INFINITY else min(_SHARE * wanted, hard)
        with suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, soft // _SHARE))
