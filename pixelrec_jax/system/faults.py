"""Faults of the machine under a program: full disks, missing rights, memory, devices.

Libraries report them in their own ways, some as text only. Here they become one line with the right
advice; everything unknown stays an error with its traceback.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping

from pixelrec_jax.system.errors import UserError, reason

_ADVICE = {
    errno.ENOSPC: "free disk space and start again",
    errno.EDQUOT: "free disk space and start again",
    errno.EFBIG: "the file system or a limit (ulimit -f) does not take files of this size",
    errno.EACCES: "change the permissions, or give another path",
    errno.EPERM: "change the permissions, or give another path",
    errno.EROFS: "the file system cannot be written; give another path",
    errno.EMFILE: "allow more open files with ulimit -n and start again",
    errno.ENFILE: "close other programs, as the machine has too many open files",
    errno.ENAMETOOLONG: "give a shorter path",
    errno.ELOOP: "its links lead in a circle; give another path",
    errno.EIO: "the disk or its connection failed; check it and start again",
    errno.ESTALE: "the disk or its connection failed; check it and start again",
    errno.ENODEV: "the disk or its connection failed; check it and start again",
    errno.ENOENT: "it was there or was expected; restore it or give another path",
    errno.ENOTDIR: "a part of the path is a file; give another path",
    errno.EISDIR: "a file was expected; give another path",
    errno.ENOTEMPTY: "give another path",
    errno.EEXIST: "remove it, or give another path",
}
# Errors that libraries without numbers tell by the system's text.
_TOLD = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EROFS,
    errno.EMFILE,
    errno.EIO,
)
# No error of the system, or one of those that tell of a file that is gone or not a file.
_OF_FILES = (0, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
_TEXTS = {os.strerror(number): number for number in (*_TOLD, errno.ENOMEM)}
_OF_LIBRARIES = re.compile(r"\(os error (\d+)\)|os_error_code='(\d+)'")  # Rust's, tensorstore
_OF_ALLOCATORS = re.compile(
    r"(?:allocate|allocating) (?:an array of )?([\d.,]+) ?(bytes|[KMGTPE]i?B)\b", re.IGNORECASE
)
_BACKENDS = "jax._src.xla_bridge"  # the module of JAX that starts devices


def ending(
    error: BaseException, sizes: Mapping[str, tuple[float, float]] | None = None
) -> tuple[str, int] | None:
    """Returns the message and exit code of an expected error, None for a fault of the program.

    Args:
      error: what ended the program.
      sizes: options that decide how much memory is needed, each with its value and its usual value.
    """
    match error:
        case UserError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return "interrupted; start the same command again to continue", 130
    if is_out_of_memory(error):
        return str(out_of_memory(error, sizes or {})), UserError.exit_code
    if _raised_in(error) == _BACKENDS:
        return (
            f"JAX cannot start its devices (JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}, "
            f"{reason(error)}); install JAX for this device, or set JAX_PLATFORMS=cpu"
        ), 2
    if (number := error_number(error)) in _ADVICE:
        return f"{_where(error)}{os.strerror(number)}; {_ADVICE[number]}", 2
    return None


def error_number(error: BaseException) -> int:
    """Returns the number of the system's error behind an exception, 0 if there is none.

    Libraries in Rust and C++ tell it in their text only.
    """
    if isinstance(error, OSError) and error.errno:
        return error.errno
    text = str(error)
    if told := _OF_LIBRARIES.search(text):
        return int(told[1] or told[2])
    return next((number for known, number in _TEXTS.items() if known in text), 0)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, what it was raised from, what that was raised from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def advice(number: int) -> str:
    """Returns what to do about an error of the system with this number."""
    return _ADVICE.get(number, "check the machine and start again")


def is_of_machine(error: BaseException) -> bool:
    """Returns whether an error is one of the machine, so that the file that it names may be whole.

    Then it passes as it is: `ending` has the right advice.
    """
    return error_number(error) not in _OF_FILES


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether memory of the host or of a device could not be allocated."""
    return (
        isinstance(error, MemoryError)
        or error_number(error) == errno.ENOMEM
        or (isinstance(error, RuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED"))
    )


def out_of_memory(error: BaseException, sizes: Mapping[str, tuple[float, float]]) -> UserError:
    """Returns the error that names the option furthest above its usual value, as in `ending`."""
    asked = _OF_ALLOCATORS.search(str(error))
    size = ""
    if asked:
        amount, unit = asked[1].replace(",", "").rstrip("."), asked[2]
        amount = f"{int(amount) / 2**30:,.1f} GiB" if unit == "bytes" else f"{amount} {unit}"
        size = f": {amount} were asked for at once"
    excess = {name: value / max(usual, 1) for name, (value, usual) in sizes.items()}
    name = max(excess, key=lambda name: excess[name], default="")
    if not name or excess[name] <= 1:
        return UserError(f"out of memory{size}; use smaller batches or a larger machine")
    value, usual = sizes[name]
    return UserError(f"out of memory{size}; {name}={value} is large (usually {usual}): lower it")


def _raised_in(error: BaseException) -> str:
    """Returns the name of the module that raised an exception."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "") if trace else ""


def _where(error: BaseException) -> str:
    """Returns the path that an exception names, as in "DIR/file: ", or its text."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: "
    return "" if isinstance(error, OSError) else f"{reason(error)}: "
