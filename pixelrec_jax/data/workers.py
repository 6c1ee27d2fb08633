"""Batches ahead of time: grain makes them in threads or processes, in order."""

import ctypes
import errno
import os
import re
import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import grain

from pixelrec_jax.system.errors import TransientError, UserError

# Grain's error for a worker that did not end by itself; -9 is the exit code after SIGKILL.
_ENDED = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

_Element = TypeVar("_Element", covariant=True)


class Source(Protocol[_Element]):
    """Random access to elements that are pure functions of their index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> _Element: ...


@contextmanager
def iterate(
    source: Source[_Element], *, start: int, stop: int, workers: int, threads: int, prefetch: int
) -> Generator[Iterator[_Element]]:
    """Yields an iterator over source[start:stop]; grain makes the batches ahead of time.

    Args:
      source: random access to batches.
      start: index of the first batch; an interrupted run gives the one it continues from.
      stop: index after the last batch.
      workers: number of processes that make batches; with 0, threads of this process make them.
      threads: number of threads in each process.
      prefetch: how many batches each process may be ahead.
    """
    dataset = grain.MapDataset.source(source).slice(slice(start, stop))
    batches = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    )
    if workers:
        # Python's resource tracker frees batches that were not read, and would warn about each.
        os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
        batches = batches.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch),
            worker_init_fn=set_up_worker,
        )
    iterator = iter(batches)
    try:
        yield _explained(iterator) if workers else iterator
    finally:
        iterator.close()  # ends workers now and not at some later garbage collection


def _explained(batches: Iterator[_Element]) -> Iterator[_Element]:
    """Yields what workers make; says why one ended and what to do.

    Raises:
      UserError: the memory that workers share is full.
      TransientError: the system ended a worker.
    """
    full = (
        "/dev/shm, through which workers pass their batches, is full; give the container more with "
        "--shm-size=8g, or make the batches without workers, with data.workers=0"
    )
    try:
        yield from batches
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            raise UserError(full) from None
        raise
    except RuntimeError as error:
        ended = _ENDED.search(str(error))
        if ended is None:
            raise
        number = -int(ended[1])
        if number == signal.SIGBUS:
            raise UserError(full) from None
        raise TransientError(
            f"a worker that makes batches was ended by the system ({_signal(number)}), most often "
            "for lack of memory; start the same command again to continue, with a smaller "
            "data.workers or data.prefetch"
        ) from None


def _signal(number: int) -> str:
    known = {each.value for each in signal.Signals}
    return signal.Signals(number).name if number in known else f"exit code {-number}"


def set_up_worker(index: int, count: int) -> None:
    """Makes a worker ignore signals, and on Linux end when its parent is killed.

    Slurm and terminals send signals to all processes; only the parent handles them.
    """
    del index, count  # grain passes them to every worker
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
