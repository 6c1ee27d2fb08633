"""Tables as text for a terminal, Markdown or LaTeX."""

import shutil
import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from pixelrec_jax.system.console import PlainConsole, render
from pixelrec_jax.system.foreign import visible

_NARROWEST_LABELS = 20  # characters; longer labels are folded rather than columns moved
_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}


class Sheet(NamedTuple):
    """A table: its title, and rows that begin with a label; the first one is the header."""

    title: str
    rows: Sequence[Sequence[str]]


def as_text(sheets: Sequence[Sheet]) -> str:
    """Returns tables that fit the terminal; without one they are as wide as they need to be.

    A table that is too wide folds its labels, then it continues below with further columns.
    """
    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    texts = []
    for sheet in sheets:
        columns = list(zip(*sheet.rows, strict=True))
        labels, cells = columns[0], columns[1:]
        parts = 1
        while True:
            size = -(-len(cells) // parts)
            groups = [cells[start : start + size] for start in range(0, len(cells), size)]
            room = terminal - max(_width(group) for group in groups)
            if room >= min(_NARROWEST_LABELS, _longest(labels)) or size == 1:
                break
            parts += 1
        lines = Text(visible(sheet.title)).wrap(PlainConsole(width=terminal), terminal)
        grids = render(_table(labels, group, max(room, 1)) for group in groups)
        texts.append("\n".join([*(line.plain.rstrip() for line in lines), grids]))
    return "\n\n".join(texts)


def as_markdown(sheets: Sequence[Sheet]) -> str:
    """Returns tables in Markdown, each below its title."""
    texts = []
    for sheet in sheets:
        header, *rows = ([visible(cell).replace("|", "\\|") for cell in row] for row in sheet.rows)
        rule = ["---", *("---:" for _ in header[1:])]
        lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
        texts.append("\n".join([f"**{visible(sheet.title)}**", "", *lines]))
    return "\n\n".join(texts)


def as_latex(sheets: Sequence[Sheet]) -> str:
    """Returns tables in LaTeX with the rules of the package booktabs, each with its caption."""
    texts = []
    for sheet in sheets:
        header, *rows = (" & ".join(map(_escape, row)) + r" \\" for row in sheet.rows)
        columns = "l" + "r" * (len(sheet.rows[0]) - 1)
        texts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{_escape(sheet.title)}}}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    *(r"\toprule", header, r"\midrule", *rows, r"\bottomrule"),
                    r"\end{tabular}",
                    r"\end{table}",
                ]
            )
        )
    return "\n\n".join(texts)


def _table(labels: Sequence[str], cells: Sequence[Sequence[str]], room: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(labels[0], max_width=room, overflow="fold")
    for header, *_ in cells:
        table.add_column(header, justify="right", no_wrap=True)
    for row in list(zip(labels, *cells, strict=True))[1:]:
        table.add_row(*row)
    return table


def _width(cells: Sequence[Sequence[str]]) -> int:
    """Returns the width of the columns of a table beside its labels."""
    return sum(_longest(column) + 3 for column in cells)  # a space on each side and one between


def _longest(column: Sequence[str]) -> int:
    return max(map(len, column))


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in visible(text))
