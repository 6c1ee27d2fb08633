"""Text for the terminal: tables, single lines and a progress bar."""

import io
import shutil
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from pixelrec_jax.system.foreign import visible


class PlainConsole(Console):
    """A console that prints text as it is, without markup, and foreign text without harm.

    Every text goes through `visible`: lines, and the titles, headers and cells of tables.
    """

    def __init__(self, **options: Any):
        """Takes the options of `rich.console.Console`."""
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Returns what rich prints for a text."""
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> None:
        """Raises BrokenPipeError again, which ends a program quietly (`one_line_errors`)."""
        raise


def render(tables: Iterable[Table]) -> str:
    """Returns tables as plain text, without markup.

    They fit the terminal; without one they are as wide as they need to be.
    """
    text = io.StringIO()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 1000
    console = PlainConsole(file=text, width=width)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


@contextmanager
def status(text: str) -> Generator[None]:
    """Shows what the program does until the end of the block; without a terminal nothing."""
    console = PlainConsole(stderr=True)
    if console.is_terminal:
        with console.status(text):
            yield
    else:
        yield


@contextmanager
def progress_bar(what: str, total: int) -> Generator[Callable[[int], None]]:
    """Yields a function that advances a bar by a count; without a terminal nothing is shown."""
    console = PlainConsole(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
