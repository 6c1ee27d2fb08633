"""Programs that tests start: alike from every terminal, and none outlives its test."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def started(argv: Sequence[str], **options) -> Iterator[subprocess.Popen]:
    """Starts a program that reads nothing; it and all that it started end with the block.

    Its output is captured as text, unless the options of `subprocess.Popen` say something else.
    """
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    options = {"stdin": subprocess.DEVNULL, **pipes, "text": True} | options
    with _signals_heard():
        process = subprocess.Popen(argv, start_new_session=True, **options)
    try:
        yield process
    finally:
        while running := _running(session=process.pid):
            for number in running:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def run(argv: Sequence[str], *, check: bool = False, **options) -> subprocess.CompletedProcess:
    """Runs a program to its end; `check` asserts that it succeeds."""
    with started(argv, **options) as process:
        output, errors = process.communicate()
    assert not (check and process.returncode), errors
    return subprocess.CompletedProcess(argv, process.returncode, output, errors)


def xla_flags(devices: int) -> str:
    """The XLA_FLAGS of this process with another number of devices."""
    count = f"--xla_force_host_platform_device_count={devices}"
    return re.sub(r"--xla_force_host_platform_device_count=\d+", count, os.environ["XLA_FLAGS"])


@contextmanager
def _signals_heard() -> Iterator[None]:
    """What is started here hears signals that nohup, or a shell's "&", has made this one ignore."""
    in_main = threading.current_thread() is threading.main_thread()  # no other may change them
    numbers = (signal.SIGHUP, signal.SIGINT) if in_main else ()
    ignored = [number for number in numbers if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, lambda *_: None)  # a new program has the default in its place
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def _running(session: int) -> list[int]:
    """The processes of a session that have not ended, as Linux lists them."""
    numbers = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _parent, _group, its_session = file.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                numbers.append(int(file.parent.name))
    return numbers
