"""The display of a run while it trains: a live line in a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

import jax
import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from pixelrec_jax.data.types import PAD, Batch
from pixelrec_jax.system.console import PlainConsole


class TrainingProgress:
    """Shows steps, loss, speed and estimated time left; use as a context manager."""

    def __init__(self, *, start: int, total: int):
        """Prepares the display; the first `start` steps of `total` are done already."""
        # All processes know the same, so only process 0 prints.
        self._console = PlainConsole(file=sys.stderr, quiet=jax.process_index() > 0)
        self._live = Progress(
            TextColumn("epoch {task.fields[epoch]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            disable=self._console.quiet or not self._console.is_terminal,
        )
        self._task = self._live.add_task(
            "train", total=total, completed=start, epoch=0, status="compiling"
        )

    def __enter__(self) -> "TrainingProgress":
        self._live.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._live.stop()

    def step(self, step: int, epoch: int) -> None:
        """Advances to a step."""
        self._live.update(self._task, completed=step, epoch=epoch)

    def status(self, text: str) -> None:
        """Shows the latest loss and speed after the bar; without a terminal it prints a line."""
        self._live.update(self._task, status=text)
        if not self._console.is_terminal:
            self.say(text)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, soft_wrap=True)


class Speed:
    """Counts steps, sequences and images since the last reading, for all processes together.

    A process counts its own batch and scales by the number of processes: an estimate that needs no
    communication.
    """

    def __init__(
        self, *, batches_per_local: float = 1, devices: int = 1, peak: float | None = None
    ):
        """Starts to count.

        Args:
          batches_per_local: size of the global batch divided by that of this process.
          devices: number of devices that share a step.
          peak: operations a second of one device, None if unknown.
        """
        self._factor, self._devices, self._peak = batches_per_local, devices, peak
        self._reset()

    def _reset(self) -> None:
        self._start, self._steps, self._sequences, self._images = time.perf_counter(), 0, 0, 0
        self._flops = 0.0

    def count(self, batch: Batch, flops: float = 0.0) -> None:
        """Adds one local batch, and the operations of the whole step on all devices."""
        self._steps += 1
        self._flops += flops
        self._sequences += int(np.count_nonzero(batch.user != PAD))
        if batch.items.image is not None:
            self._images += int(np.count_nonzero(batch.items.id != PAD))

    def read(self) -> dict[str, float]:
        """Returns the rates since the last reading; an image counts once per batch.

        TFLOP/s per device count the model's operations, and MFU is their fraction of the peak.
        """
        seconds = time.perf_counter() - self._start
        rates = {
            "train/steps_per_second": self._steps / seconds,
            "train/sequences_per_second": self._factor * self._sequences / seconds,
        }
        if self._images:
            rates["train/images_per_second"] = self._factor * self._images / seconds
        if self._flops:
            a_device = self._flops / seconds / self._devices
            rates["train/tflops_per_device"] = a_device / 1e12
            if self._peak:
                rates["train/mfu"] = a_device / self._peak
        self._reset()
        return rates


def format_scalars(step: int, scalars: dict[str, float], prefix: str = "train/") -> str:
    """Returns a line with the step and the scalars whose names start with a prefix."""
    shown = [
        f"{name.removeprefix(prefix).replace('_per_second', '/s')} {value:.4g}"
        for name, value in scalars.items()
        if name.startswith(prefix)
    ]
    return f"step {step}: " + ", ".join(shown)
