"""Facts about the machine and the code that runs on it."""

import resource
import subprocess
import sys
from pathlib import Path

import jax


def code_commit(root: Path) -> str | None:
    """Returns the commit of the clone at a folder, None if the folder is not the top of one."""
    if not (root / ".git").exists():  # otherwise git would look in parent folders
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    command.append("--exclude=*")  # tags
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):  # git is missing, or does not trust the folder
        return None
    return done.stdout.strip() or None


def peak_of_host() -> int:
    """Returns the largest memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def peak_of_devices() -> int | None:
    """Returns the largest memory of a device so far, in bytes; None if devices do not tell it."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    return max(
        (x["peak_bytes_in_use"] for x in statistics if "peak_bytes_in_use" in x), default=None
    )
