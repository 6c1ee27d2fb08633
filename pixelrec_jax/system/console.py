"""Text for the terminal: tables, single lines and a progress bar."""

import io
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def render(tables: Iterable[Table]) -> str:
    """Returns tables as plain text, as wide as they need to be and without markup."""
    text = io.StringIO()
    console = Console(file=text, width=1000, markup=False, emoji=False, highlight=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def clean_line(value: str | None, *, width: int) -> str:
    """Returns a foreign text as one line of at most `width`, without control characters."""
    visible = "".join(c if c.isprintable() else " " for c in value or "")
    line = " ".join(visible.split())
    return line if len(line) <= width else line[: width - 1] + "…"


@contextmanager
def progress_bar(what: str, total: int) -> Generator[Callable[[int], None]]:
    """Yields a function that advances a bar by a count; without a terminal nothing is shown."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
