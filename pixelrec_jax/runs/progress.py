"""The display of a run while it trains: one live line in a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import jax
import numpy as np
from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pixelrec_jax.data.types import PAD, Batch
from pixelrec_jax.runs.goodput import Goodput
from pixelrec_jax.system.console import PlainConsole

_DOING = {"input": "waiting for data", "evaluation": "evaluating", "save": "saving"}
_AWAITED = {"evaluation": "the evaluation and the next step", "save": "the save and the next step"}
_SHORTEST_BAR = 6
_LONGEST_BAR = 40
_AFTER = 3  # columns that stay free, as a terminal prints ^C there
_TIMED = 20  # latest steps whose mean time predicts that of the others
_TOLD = 2  # steps that are timed before the time of an epoch is told


class TrainingProgress:
    """Shows what a run does at every moment: what, how far, how long it took and will take."""

    def __init__(self, *, start: int, total: int, steps_per_epoch: int, eval_every: int):
        """Prepares the display.

        Args:
          start: number of the steps that are done already.
          total: number of all steps.
          steps_per_epoch: number of the steps of an epoch.
          eval_every: number of epochs between evaluations.
        """
        # All processes know the same, so only process 0 prints.
        self._console = PlainConsole(file=sys.stderr, quiet=jax.process_index() > 0)
        self._step, self._total = start, total
        self._steps_per_epoch, self._eval_every = steps_per_epoch, eval_every
        self._goodput: Goodput | None = None
        self._began = time.monotonic()
        self._shapes: set[Sequence[int]] = set()
        self._compiling = self._stopping = False
        self._evaluated = (0, 0)  # parts of the evaluation that are done, and of all
        self._pause = 0.0  # seconds of the latest evaluation and the save after it
        self._paused: float | None = None  # seconds of all before it, until the next step
        self._trained = 0.0  # seconds of training at the latest step
        self._durations: deque[float] = deque(maxlen=_TIMED)
        self._timed = 0  # steps of this process so far
        self._told = False  # whether the time with evaluations and saves was told
        self._scalars: dict[str, float] = {}

    @contextmanager
    def showing(self, goodput: Goodput) -> Generator[None]:
        """Shows the live line, in a terminal only; `goodput` knows what the run does."""
        self._goodput, self._trained = goodput, goodput.trained
        if self._console.quiet or not self._console.is_terminal:
            yield
            return
        get_line = self._line
        with Live(
            get_renderable=get_line, console=self._console, transient=True, refresh_per_second=4
        ):
            yield

    def say(self, text: str) -> None:
        """Prints a line that stays; a terminal breaks it between words."""
        self._console.print(text, soft_wrap=not self._console.is_terminal)

    def shape(self, shape: Sequence[int]) -> None:
        """Takes the shape of a batch before its step: the step is compiled for a new one."""
        self._compiling = shape not in self._shapes
        self._shapes.add(shape)

    def step(self, step: int) -> None:
        """Advances to a step that was given to the devices."""
        assert self._goodput is not None
        self._compiling, self._step = False, step
        trained = self._goodput.trained
        if self._timed:  # the time until the first step is not that of a step
            self._durations.append(trained - self._trained)
        self._trained, self._timed = trained, self._timed + 1
        if self._timed == 1 + _TOLD:
            self.say(self._forecast())
        if self._paused is not None:
            self._pause, self._paused = self._pauses() - self._paused, None
            if not self._told:
                self._told = True
                self.say(self._forecast_with_pauses())

    def status(self, step: int, scalars: dict[str, float]) -> None:
        """Takes the scalars of a step for the live line; without a terminal it prints a line."""
        self._scalars = scalars
        if not self._console.is_terminal:
            self.say(format_scalars(step, scalars))

    @contextmanager
    def evaluation(self, parts: int) -> Generator[Callable[[int], None]]:
        """Shows an evaluation; yields a function that advances it by a number of its parts."""
        assert self._goodput is not None
        self._evaluated, self._paused = (0, parts), self._pauses()
        yield self._advance
        self._pause = self._pauses() - self._paused  # and the save, once it is done

    def stopping(self) -> None:
        """Says at once, from any thread, what a run that was asked to stop waits for."""
        if self._stopping or self._goodput is None:
            return
        self._stopping = True
        awaited = _AWAITED.get(self._goodput.phase_now, "the step in progress")
        awaited = "the compilation and the step" if self._compiling else awaited
        self.say(
            f"stopping: waits for {awaited}, then saves it; Ctrl-C again ends at once, without "
            "the steps since the last save"
        )

    def _advance(self, count: int) -> None:
        done, parts = self._evaluated
        self._evaluated = (done + count, parts)

    def _forecast(self) -> str:
        epoch = self._mean() * self._steps_per_epoch
        left = self._mean() * (self._total - self._step)
        return (
            f"an epoch of {self._steps_per_epoch:,} steps takes about {words_of(epoch)} without "
            f"its evaluation; all {self._total - self._step:,} steps to come take about "
            f"{words_of(left)}, less if training stops early"
        )

    def _forecast_with_pauses(self) -> str:
        return (
            f"with evaluations and saves, the {self._total - self._step:,} steps to come take "
            f"about {words_of(self._seconds_left() or 0)}"
        )

    def _pauses(self) -> float:
        """Returns the seconds of all evaluations and saves until now."""
        assert self._goodput is not None
        return self._goodput.seconds("evaluation") + self._goodput.seconds("save")

    def _mean(self) -> float:
        return sum(self._durations) / len(self._durations)

    def _seconds_left(self) -> float | None:
        """Returns an estimate without compilation, None if it is not known yet."""
        if not self._durations:
            return None
        between = self._steps_per_epoch * self._eval_every
        evaluations = math.ceil(self._total / between) - self._step // between
        return self._mean() * (self._total - self._step) + self._pause * evaluations

    def _doing(self) -> str:
        assert self._goodput is not None
        phase, waits = self._goodput.phase_now, self._goodput.phase_seconds
        if phase == "evaluation":
            done, parts = self._evaluated
            doing = f"evaluating {done}/{parts}"
        elif self._compiling:
            doing = "compiling"
        else:  # a short wait for data is part of every step
            doing = _DOING.get(phase, "training") if phase != "input" or waits > 1 else "training"
        return f"stopping: {doing}" if self._stopping else doing

    def _epoch(self) -> str:
        """Returns the epoch that the run is in, as in "1/40"; an evaluation belongs to the last."""
        assert self._goodput is not None
        ended = self._goodput.phase_now in ("evaluation", "save")
        epochs = math.ceil(self._total / self._steps_per_epoch)
        epoch = max(0, self._step - ended) // self._steps_per_epoch + 1
        return f"{min(epoch, epochs)}/{epochs}"

    def _line(self) -> RenderableType:
        """Returns the live line: what matters first, the rest where there is room."""
        left = self._seconds_left()
        head = f"{clock(time.monotonic() - self._began)} eta {clock(left)} "
        epoch = self._epoch()
        tail = f" epoch {epoch} step {self._step:,}/{self._total:,} {self._doing()}"
        room = self._console.width - _AFTER - _SHORTEST_BAR
        for name, value in self._scalars.items():
            more = f", {_short(name)} {value:.4g}"
            if name.startswith("train/") and len(head + tail + more) <= room:
                tail += more
        if len(head + tail) > room:
            tail = f" epoch {epoch} {self._doing()}"
        width = max(0, min(_LONGEST_BAR, self._console.width - _AFTER - len(head + tail)))
        evaluating = self._goodput and self._goodput.phase_now == "evaluation"
        done, parts = self._evaluated if evaluating else (self._step, self._total)
        line = Table.grid()
        for _ in range(3):
            line.add_column(no_wrap=True)
        line.add_row(head, ProgressBar(total=max(parts, 1), completed=done, width=width), tail)
        return line


class Speed:
    """Counts steps, rows and images since the last reading, for all processes together.

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
        self._start, self._steps, self._rows, self._images = time.perf_counter(), 0, 0, 0
        self._flops = 0.0

    def count(self, batch: Batch, flops: float = 0.0) -> None:
        """Adds one local batch, and the operations of the whole step on all devices."""
        self._steps += 1
        self._flops += flops
        self._rows += int(np.count_nonzero(batch.user != PAD))
        if batch.items.image is not None:
            self._images += int(np.count_nonzero(batch.items.id != PAD))

    def read(self) -> dict[str, float]:
        """Returns the rates since the last reading; an image counts once per batch.

        TFLOP/s per device count the model's operations, and MFU is their fraction of the peak.
        """
        seconds = time.perf_counter() - self._start
        rates = {
            "train/steps_per_second": self._steps / seconds,
            "train/rows_per_second": self._factor * self._rows / seconds,
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


def format_scalars(step: int, scalars: dict[str, float]) -> str:
    """Returns a line with the step and the scalars of training."""
    shown = [
        f"{_short(name)} {value:.4g}"
        for name, value in scalars.items()
        if name.startswith("train/")
    ]
    return f"step {step}: " + ", ".join(shown)


def format_metrics(metrics: dict[str, float]) -> str:
    """Returns metrics, which are fractions, in percent, as in "percent: ndcg@10 4.21"."""
    return "percent: " + ", ".join(f"{name} {100 * x:.2f}" for name, x in metrics.items())


def clock(seconds: float | None) -> str:
    """Returns a duration as h:mm:ss."""
    if seconds is None:
        return "-:--:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def words_of(seconds: float) -> str:
    """Returns a duration with one or two units, as in "2 h 5 min"."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _short(name: str) -> str:
    return name.removeprefix("train/").replace("_per_second", "/s")
