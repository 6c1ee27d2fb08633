"""Runs of several processes: how the processes join, agree and end together.

Every process runs the same program with the same config. JAX's coordination service in process 0
knows which processes are alive and carries short messages between them. Arrays travel by XLA's
collectives, which this module does not handle.
"""

import ctypes
import hashlib
import itertools
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
from jax._src.distributed import global_state  # the only way to the client; orbax also uses it
from jax.experimental import multihost_utils

from pixelrec_jax.parallel import preemption
from pixelrec_jax.system import faults
from pixelrec_jax.system.errors import TransientError, UserError, reason

JOIN_SECONDS = 300  # within which all processes must join
LOST_SECONDS = 60  # without a heartbeat, as a virtual machine may pause; then a process is lost
WRITE_SECONDS = 3600  # that all processes wait at the end while process 0 still writes
READ_SECONDS = 3600  # that a process waits until all have read a checkpoint
LEAVE_SECONDS = 5  # in which a process may end by itself when it meets the same error

_ROUNDS = itertools.count()  # of `first_problem`, counted alike in all processes
_FAILURE = "pixelrec_jax/failure"
# How messages of XLA's runtime begin, as in "UNKNOWN: Gloo all-reduce failed: ...".
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")
_HANDLERS: list[Any] = []  # C knows their addresses only


@contextmanager
def joined(address: str, resume_hint: Callable[[], str]) -> Generator[None]:
    """Joins this process to the others of its run, for the time of a with statement.

    An error of one process ends all processes with its message. So does the loss of a process, even
    if the others wait for it in a collective that never ends: then the with statement does not
    return, and the process ends with a non-zero exit code.

    Args:
      address: "" for a run of one process; "auto" where JAX knows the cluster (Cloud TPU, GKE,
        Slurm, Open MPI); otherwise "HOST:PORT,PROCESS,PROCESSES": the address on which process 0
        listens, the number of this process, and how many processes there are.
      resume_hint: returns what to do after the loss of a process; called in any thread.

    Raises:
      UserError: the address is malformed, or JAX does not know the cluster.
    """
    if not address:
        yield
        return
    where = _parse(address)
    _at_abort(
        lambda: (
            f"--distributed={address}: this process could not join the others of its run (see "
            f"above; all must join within {JOIN_SECONDS} seconds); start every process once, all "
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
        # The name of a machine that is still being created cannot be resolved yet.
        kind = TransientError if isinstance(error, RuntimeError) else UserError
        raise kind(
            f"--distributed={address} failed ({reason(error)}); give HOST:PORT,PROCESS,PROCESSES"
        ) from None
    jax.devices()  # first: a device's library may change the handlers of signals
    preemption.take_from_jax()
    _at_abort(lambda: f"a process of this run was lost (see above); {resume_hint()}")
    failing = threading.Event()
    watcher = threading.Thread(target=_end_with_others, args=(failing,), daemon=True)
    watcher.start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _fail(error, failing)
    jax.distributed.shutdown()  # waits for the others; one of them may still fail
    watcher.join()  # Python must not end while this thread is in the runtime
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
    """Raises `UserError` in a process whose text differs from that of process 0; collective."""
    digest = np.frombuffer(hashlib.sha256(content.encode()).digest(), np.uint8)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(digest), digest):
        raise UserError(
            f"process {jax.process_index()} has another {what} than process 0; start all processes "
            "with the same command and the same files"
        )


def in_first_process(
    open_one: Callable[..., AbstractContextManager], *args: Any, **options: Any
) -> AbstractContextManager:
    """Returns what `open_one` opens in process 0, and a context that yields None in the others."""
    return open_one(*args, **options) if jax.process_index() == 0 else nullcontext()


def first_problem(problem: str) -> str:
    """Returns the text of the first process that gives one, "" if none does; collective.

    Process 0 waits until all have told theirs, and decides. These are messages and not arrays, as
    one process may take minutes longer than another to read a checkpoint.
    """
    if jax.process_count() == 1:
        return problem
    client, key = _client(), f"pixelrec_jax/problem/{next(_ROUNDS)}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(problem))
    if jax.process_index() == 0:
        keys = (f"{key}/{process}" for process in range(jax.process_count()))
        told = [json.loads(client.blocking_key_value_get(k, 1000 * READ_SECONDS)) for k in keys]
        client.key_value_set(f"{key}/first", json.dumps(next(filter(None, told), "")))
    return json.loads(client.blocking_key_value_get(f"{key}/first", 1000 * READ_SECONDS))


def wait_for_all(reason: str) -> None:
    """Returns once every process has called this; collective."""
    multihost_utils.sync_global_devices(reason)


def _client() -> Any:
    """Returns the connection to the coordinator, for which jaxlib declares no type."""
    assert global_state.client is not None, "jax.distributed.initialize has returned"
    return global_state.client


def _fail(error: BaseException, failing: threading.Event) -> None:
    """Ends this process because of an error, and tells the others the reason."""
    ending = faults.ending(error)
    if ending is None and _STATUS.match(str(error)):
        # Probably the effect of another process's end. Then that process reports its error within
        # this time, and `_end_with_others` ends this process.
        time.sleep(LOST_SECONDS + LEAVE_SECONDS)
    failing.set()
    if ending is None:
        traceback.print_exception(error)
        ending = reason(error), 1
    client = _client()
    with suppress(RuntimeError):  # another process was faster
        client.key_value_set(_FAILURE, json.dumps([jax.process_index(), *ending]))
    _end(*ending)


def _end_with_others(failing: threading.Event) -> None:
    """Ends this process when another one fails, unless this one meets the same error."""
    client = _client()
    try:
        failure = client.blocking_key_value_get(_FAILURE, 2**31 - 1)
    except RuntimeError:  # all processes have reached the end
        return
    if not failing.wait(LEAVE_SECONDS):
        process, message, code = json.loads(failure)
        _end(f"process {process} ended: {message}", code)


def _end(message: str, code: int) -> None:
    """Ends this process without waiting for its devices, as a collective there may never end."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    _at_abort(lambda: message, code)  # in case process 0 ends first
    client = _client()
    with suppress(RuntimeError):
        client.wait_at_barrier("pixelrec_jax/end", 2000 * LEAVE_SECONDS)
    if jax.process_index() == 0:
        time.sleep(1)  # the end of process 0 ends all connections
    os._exit(code)


def _at_abort(message: Callable[[], str], code: int = 1) -> None:
    """Makes a process print a last line when JAX's runtime aborts it because others are lost.

    The runtime calls abort() in its own thread. Python's handlers run only in the main thread,
    which may never return from a collective, so this is a handler of C. (The runtime has a
    callback for this case, but jaxlib 0.10.2 cannot pass its argument to Python.)
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number: int) -> None:
        os.write(sys.stderr.fileno(), f"error: {message()}\n".encode())
        os._exit(code)

    _HANDLERS.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
