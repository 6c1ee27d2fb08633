"""A signal is answered at once, and obeyed between two steps."""

import hashlib
import os
import signal
import threading
import time

import pytest

from pixelrec_jax.parallel.preemption import stop_request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_while_the_main_thread_computes(number):
    answers, before = [], signal.getsignal(number)
    with stop_request(lambda: answers.append(time.perf_counter())) as stop:
        assert not stop.applies_to(1)
        timer = threading.Timer(0.05, os.kill, (os.getpid(), number))
        timer.start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 3_000_000)  # as a step, Python cannot interrupt it
        end = time.perf_counter()
        timer.join()
        assert stop.applies_to(1)
        with pytest.raises(KeyboardInterrupt):  # a second one ends the process
            signal.raise_signal(number)
    assert answers[0] < end
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1


class _Interrupted:
    """Its end, which Python may call anywhere, is interrupted."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_an_interrupt_in_a_callback_is_not_lost():
    with stop_request() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.applies_to(1)
        _Interrupted()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
