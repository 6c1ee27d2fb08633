"""What a run says when a process that makes batches ends, or when their shared memory is full."""

import errno
import os
import signal

import numpy as np
import pytest

from pixelrec_jax.data.workers import _explained, iterate
from pixelrec_jax.system.errors import TransientError, UserError


class Pids:
    """Each element is the number of the process that made it."""

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return np.array([os.getpid()])


def test_a_worker_that_the_system_kills_is_one_line():
    with iterate(Pids(), start=0, stop=1000, workers=1, threads=1, prefetch=1) as batches:
        os.kill(int(next(batches)[0]), signal.SIGKILL)
        with pytest.raises(TransientError, match=r"ended by the system \(SIGKILL\)") as caught:
            list(batches)
    assert "data.prefetch" in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search"),
    ],
)
def test_full_shared_memory_names_the_ways_out(error):
    def batches():
        yield 1
        raise error

    explained = _explained(batches())
    assert next(explained) == 1
    with pytest.raises(UserError, match=r"/dev/shm.*--shm-size.*data\.workers=0"):
        next(explained)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space", "/a/file"), RuntimeError("x")])
def test_other_errors_of_workers_stay(error):
    with pytest.raises(type(error)) as caught:
        list(_explained(iter(_Failing(error))))
    assert caught.value is error


class _Failing:
    def __init__(self, error):
        self._error = error

    def __iter__(self):
        return self

    def __next__(self):
        raise self._error
