"""The tests' own care for the programs that they start."""

import os
import signal
import sys

from tests import subprocesses

PARENT = """
import subprocess, sys
command = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(1000)"]
subprocess.Popen(command, process_group=0, close_fds=False).wait()
"""


def test_what_a_program_has_started_ends_with_it():
    reads, writes = os.pipe()
    with subprocesses.started([sys.executable, "-c", PARENT], pass_fds=[writes]) as process:
        assert process.stdout.readline() == "started\n"
        os.close(writes)
    assert os.read(reads, 1) == b""  # nobody is left who could write
    os.close(reads)


def test_programs_hear_the_signals_that_nohup_and_shells_ignore():
    program = "from signal import *; print(SIG_IGN in map(getsignal, (SIGHUP, SIGINT)))"
    numbers = (signal.SIGHUP, signal.SIGINT)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        done = subprocesses.run([sys.executable, "-c", program], check=True)
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_IGN] * 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert done.stdout == "False\n"


def test_a_program_on_another_number_of_devices_keeps_the_other_flags(monkeypatch):
    flags = "--xla_cpu_max_isa=AVX2 --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert subprocesses.xla_flags(2) == flags.replace("8", "2")
