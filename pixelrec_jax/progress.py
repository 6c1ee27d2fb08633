"""What a person sees while a run trains: a live line in a terminal, plain lines elsewhere."""

import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class TrainingProgress:
    """Shows steps, loss, speed and estimated time left; use as a context manager."""

    def __init__(self, *, start: int, total: int):
        """Args: `start` steps of `total` were done by an earlier run."""
        self._console = Console(file=sys.stderr, highlight=False)
        self._live = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            disable=not self._console.is_terminal,
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
        """Moves on to a step."""
        self._live.update(self._task, completed=step, epoch=epoch)

    def status(self, text: str) -> None:
        """Shows the latest loss and speed behind the bar; prints a line where there is no bar."""
        self._live.update(self._task, status=text)
        if not self._console.is_terminal:
            self.say(text)

    def say(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, soft_wrap=True)
