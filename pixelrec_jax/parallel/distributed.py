"""Several processes that are one run: how they join, agree and end together.

Every process runs the same program on the same config. The coordination service of JAX, which lives
in process 0, knows who is there, carries a few words between processes and misses those that are
silent. Arrays travel by XLA's collectives, of which nothing is seen here.
"""

import ctypes
import hashlib
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state  # the only way to the client; orbax takes it, too
from jax.experimental import multihost_utils

from pixelrec_jax.parallel import preemption
from pixelrec_jax.system import errors
from pixelrec_jax.system.errors import TransientError, UserError

JOIN_SECONDS = 300  # until all processes are there
LOST_SECONDS = 60  # without a sign of life: a virtual machine may pause for a while
WRITE_SECONDS = 3600  # that the others wait at the end for what process 0 still writes
LEAVE_SECONDS = 5  # in which processes that meet the same error end by themselves

_FAILURE = "pixelrec_jax/failure"
# How messages of XLA's runtime begin, as in "UNKNOWN: Gloo all-reduce failed: ...".
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")
_HANDLERS: list[Any] = []  # C knows their addresses only


@contextmanager
def joined(address: str, resume_hint: Callable[[], str]) -> Generator[None]:
    """Joins this process to the others of its run, for the time of a with statement.

    An error of one process ends all of them with its message, and so does the loss of a process,
    although the others may be waiting for it within a collective that never ends: then the with
    statement does not return, and the process ends with a non-zero exit code.

    Args:
      address: "" for a run of one process; "auto" where JAX knows the cluster (Cloud TPU, GKE,
        Slurm, Open MPI); else "HOST:PORT,PROCESS,PROCESSES": where process 0 listens, the number
        of this process and of all processes.
      resume_hint: says what to do after the loss of a process; is called in any thread.

    Raises:
      UserError: a malformed address, or no cluster that JAX knows.
    """
    if not address:
        yield
        return
    where = _parse(address)
    _at_abort(
        lambda: (
            f"--distributed={address}: this process could not join the others of its run (see "
            f"above; all must come within {JOIN_SECONDS} seconds); start every process once, all "
            "with the same HOST:PORT, on which process 0 listens, and the same number of processes"
        )
    )
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=LOST_SECONDS,
            shutdown_timeout_seconds=WRITE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        # The name of a machine that is still being made is not known yet.
        kind = TransientError if isinstance(error, RuntimeError) else UserError
        raise kind(
            f"--distributed={address} failed ({errors.reason(error)}); give "
            "HOST:PORT,PROCESS,PROCESSES"
        ) from None
    jax.devices()  # now: what a device's library does to signals comes before the next line
    preemption.take_from_jax()
    _at_abort(lambda: f"a process of this run was lost (see above); {resume_hint()}")
    failing = threading.Event()
    watcher = threading.Thread(target=_end_with_others, args=(failing,), daemon=True)
    watcher.start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _fail(error, failing)
    jax.distributed.shutdown()  # waits for the others, of which one may still fail
    watcher.join()  # within the runtime it must not be when Python ends
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


def _parse(address: str) -> dict:
    if address == "auto":
        return {}
    match = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", address)
    if not match or int(match[2]) >= int(match[3]):
        raise UserError(
            f"--distributed={address!r}; expected auto, or HOST:PORT,PROCESS,PROCESSES as in "
            "10.0.0.1:8476,0,4, where processes count from 0"
        )
    return {
        "coordinator_address": match[1],
        "process_id": int(match[2]),
        "num_processes": int(match[3]),
    }


def check_equal(what: str, content: str) -> None:
    """Raises `UserError` in processes where a text differs from that of process 0; collective."""
    digest = np.frombuffer(hashlib.sha256(content.encode()).digest(), np.uint8)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(digest), digest):
        raise UserError(
            f"process {jax.process_index()} has another {what} than process 0; start all processes "
            "with the same command and the same files"
        )


def in_first_process(
    open_one: Callable[..., AbstractContextManager], *args: Any, **options: Any
) -> AbstractContextManager:
    """Opens what writes files in the first process, and in the others nothing, as None."""
    return open_one(*args, **options) if jax.process_index() == 0 else nullcontext()


def wait_for_all(reason: str) -> None:
    """Returns once every process has come here; collective."""
    multihost_utils.sync_global_devices(reason)


def _client() -> Any:
    """Returns the connection to the coordinator, for which jaxlib declares no type."""
    assert global_state.client is not None, "jax.distributed.initialize has returned"
    return global_state.client


def _fail(error: BaseException, failing: threading.Event) -> None:
    """Ends this process for an error, and tells the others why."""
    ending = errors.ending(error)
    if ending is None and _STATUS.match(str(error)):
        # Likely the echo of another process's end. Whether it is, others will say in that time,
        # and end this process.
        time.sleep(LOST_SECONDS + LEAVE_SECONDS)
    failing.set()
    if ending is None:
        traceback.print_exception(error)
        ending = errors.reason(error), 1
    client = _client()
    with suppress(RuntimeError):  # another process was first
        client.key_value_set(_FAILURE, json.dumps([jax.process_index(), *ending]))
    _end(*ending)


def _end_with_others(failing: threading.Event) -> None:
    """Ends this process when another one fails, but for errors that this process meets, too."""
    client = _client()
    try:
        failure = client.blocking_key_value_get(_FAILURE, 2**31 - 1)
    except RuntimeError:  # all processes have reached the end
        return
    if not failing.wait(LEAVE_SECONDS):
        process, message, code = json.loads(failure)
        _end(f"process {process} ended: {message}", code)


def _end(message: str, code: int) -> None:
    """Ends this process without waiting for devices, which others may have left waiting."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    _at_abort(lambda: message, code)  # should process 0 be gone first
    client = _client()
    with suppress(RuntimeError):
        client.wait_at_barrier("pixelrec_jax/end", 2000 * LEAVE_SECONDS)
    if jax.process_index() == 0:
        time.sleep(1)  # all connections end here
    os._exit(code)


def _at_abort(message: Callable[[], str], code: int = 1) -> None:
    """Gives abort(), by which JAX's runtime ends a process whose peers are lost, a last line.

    The runtime calls it in a thread of its own. Python's handlers run in the main thread only,
    which may never come back from a collective; so this is a handler of C. (The runtime has a
    callback for this end, but jaxlib 0.10.2 cannot pass its argument to Python.)
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        os.write(sys.stderr.fileno(), f"error: {message()}\n".encode())
        os._exit(code)

    _HANDLERS.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
