"""Programs that tests start: alike from every terminal, and none outlives its test."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

# Imports once what programs import, then runs each in a copy of this process.
_COPIES = """
import json, os, runpy, sys
import pixelrec_jax.training.train
[folder, module, lists] = sys.argv[1:]
for number, arguments in enumerate(json.loads(lists)):
    if not os.fork():
        for stream in (1, 2):
            os.dup2(os.open(f"{folder}/{number}.{stream}", os.O_CREAT | os.O_WRONLY), stream)
        sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


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


def run_each(
    module: str, lists: Sequence[Sequence[str]], folder: Path, **options
) -> list[subprocess.CompletedProcess]:
    """Runs a program with each list of arguments, without the seconds of imports for each."""
    argv = [sys.executable, "-c", _COPIES, str(folder), module, json.dumps(lists)]
    codes = map(int, run(argv, check=True, **options).stdout.split())
    return [
        subprocess.CompletedProcess(
            arguments, code, *((folder / f"{number}.{stream}").read_text() for stream in (1, 2))
        )
        for number, (arguments, code) in enumerate(zip(lists, codes, strict=True))
    ]


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
