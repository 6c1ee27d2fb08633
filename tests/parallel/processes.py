"""Programs that are processes of one run, on this machine."""

import os
import socket
import sys
from contextlib import ExitStack
from typing import NamedTuple

from tests import subprocesses
from tests.tiny import ROOT


class Ended(NamedTuple):
    code: int
    output: str
    errors: str

    @property
    def last_line(self) -> str:
        return self.errors.strip().splitlines()[-1]


def run_together(programs, arguments, devices=4):
    """Runs programs side by side until all have ended; each is told its process number."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    options = {"cwd": ROOT, "env": {**os.environ, "XLA_FLAGS": subprocesses.xla_flags(devices)}}
    with ExitStack() as stack:
        processes = []
        for number, program in enumerate(programs):
            place = f"--distributed={address},{number},{len(programs)}"
            argv = [sys.executable, *program, *arguments, place]
            processes.append(stack.enter_context(subprocesses.started(argv, **options)))
        return [
            Ended(process.returncode, output, errors)
            for process in processes
            for output, errors in [process.communicate()]
        ]
