r"""Trains on all devices of this machine; the encoders of a sweep are trained one after another.

pixelrec launch local --sweep=figure9 -- \
    --config=pixelrec:user=sasrec,dataset=pixel200k --workdir=runs/figure9

One process uses all devices: processes do not have to agree on anything, one pool of workers
decodes all images of a batch, and Ctrl-C stops one program.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from pixelrec_jax.launch import jobs
from pixelrec_jax.launch.commands import (
    Command,
    define_common_flags,
    environment,
    execute,
    program,
)
from pixelrec_jax.system.errors import TransientError, UserError

INTERRUPTED = 130  # the exit code of a run that was asked to stop


def train(command: Command) -> int:
    """Runs one training to its end and returns its exit code; each signal is passed on once.

    If the terminal closes, the training gets SIGTERM, unless nohup makes this process ignore it.
    """
    # In its own process group: Ctrl-C reaches only this process, which passes it on.
    process = subprocess.Popen(command.argv, process_group=0)
    sent: dict[int, signal.Signals] = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM}
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        sent[signal.SIGHUP] = signal.SIGTERM
    before = {
        number: signal.signal(number, lambda received, _: process.send_signal(sent[received]))
        for number in sent
    }
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return INTERRUPTED if -code in sent else code


def main(of_run: Sequence[str]) -> None:
    """Runs the trainings that the flags describe and prints their table."""
    values = flags.FLAGS
    every = jobs.jobs(of_run, "run", values.sweep)
    start = (sys.executable, "-m", "pixelrec_jax", "train")
    if variables := environment():
        start = ("/usr/bin/env", *(f"{name}={value}" for name, value in variables.items()), *start)
    commands = {job.workdir: Command((*start, *job.flags)) for job in every}
    if values.dry_run:
        execute({name: [command] for name, command in commands.items()}, dry_run=True)
        return
    if len(every) == 1:
        (command,) = commands.values()
        os.execv(command.argv[0], command.argv)
    failed, codes = [], set()
    for number, (workdir, command) in enumerate(commands.items(), start=1):
        print(f"[{number}/{len(commands)}] {command}", flush=True)
        code = train(command)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            codes.add(code)
            failed.append(f"{workdir} (exit code {code})")
    if len(failed) < len(every):  # a table needs at least one result
        from pixelrec_jax.runs import report

        print(report.table([job.workdir for job in every], unfinished=True), flush=True)
    if failed:
        said = f"{len(failed)} of {len(every)} runs failed: {', '.join(failed)}"
        if codes == {UserError.exit_code}:
            raise UserError(f"{said}; see the errors above")
        raise TransientError(f"{said}; start the same command again to continue")


def define_flags() -> None:
    """Defines the flags of this program."""
    define_common_flags()


if __name__ == "__main__":
    define_flags()
    program(main)
