"""Output of the statistics of prepared datasets: a text table, JSON and pictures."""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from pixelrec_jax.data.interactions import load_interactions
from pixelrec_jax.ingest import plots
from pixelrec_jax.ingest.statistics import Statistics, analyze
from pixelrec_jax.system import storage
from pixelrec_jax.system.console import render
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import replaced_file
from pixelrec_jax.system.foreign import clean_line
from pixelrec_jax.system.temporary import remove_leftovers

_NAME = 30  # characters shown of a name


def write(
    directories: Sequence[str | Path], out: Path | None = None
) -> tuple[dict[str, Statistics], Path]:
    """Writes analysis.json and pictures of prepared datasets.

    Args:
      directories: folders or URLs of the datasets.
      out: folder to write, created if needed; by default `analysis` in the only, local dataset.

    Returns:
      The statistics by name of the dataset, and the folder that was written.

    Raises:
      UserError: a folder is not a prepared dataset or is named twice, or `out` cannot be written.
    """
    names = _names(directories)
    if out is None and (len(directories) > 1 or storage.is_remote(directories[0])):
        raise UserError("--out is missing; name the folder to write to")
    out = Path(directories[0], "analysis") if out is None else out
    datasets = {
        name: analyze(load_interactions(directory))
        for name, directory in zip(names, directories, strict=True)
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        with ExitStack() as stack:  # all files are replaced at its end, or none

            def place(name: str) -> Path:
                return stack.enter_context(replaced_file(out / name))

            plots.draw(datasets, place)
            facts = {name: dataset.facts for name, dataset in datasets.items()}
            place("analysis.json").write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {str(out)!r} ({error.strerror}); name another folder with --out=DIR"
        ) from None
    return datasets, out


def table(datasets: Mapping[str, Statistics]) -> str:
    """Returns the statistics as a text table with a column for each dataset."""
    grid = Table(box=box.SIMPLE_HEAD)
    grid.add_column("")
    columns = []
    for name, dataset in datasets.items():
        grid.add_column(clean_line(name, width=_NAME), justify="right")
        columns.append(_figures(dataset.facts))
    labels = dict.fromkeys(label for column in columns for label in column)
    for label in labels:
        grid.add_row(label, *(column.get(label, "") for column in columns))
    return render([grid])


def _figures(facts: Mapping[str, Any]) -> dict[str, str]:
    """Returns the cells of a dataset by label."""
    sessions, items, times = facts["session_length"], facts["popularity"], facts["timestamps"]
    most_popular = clean_line(items["most_popular_item"], width=_NAME)
    if times["dates"]:
        first, last = (date[:10] for date in times["dates"])
    else:
        first, last = str(times["first"]), str(times["last"])
    figures = {
        "users": f"{facts['users']:,}",
        "items": f"{facts['items']:,}",
        "interactions": f"{facts['interactions']:,}",
        "interactions per user": f"{sessions['mean']:,.2f}",
        "interactions per item": f"{items['mean']:,.2f}",
        "sparsity": f"{facts['sparsity']:.4%}",
        "shortest session": f"{sessions['least']:,}",
        "median session": f"{sessions['median']:,g}",
        "longest session": f"{sessions['most']:,}",
        "sessions from 10 to 20": f"{sessions['share_from_10_to_20']:.1%}",
        "least popular item": f"{items['least']:,}",
        "median item": f"{items['median']:,g}",
        "most popular item": f"{items['most']:,} ({most_popular})",
        "share of top 1 % of items": f"{items['share_of_top_1_percent']:.1%}",
        "share of top 10 % of items": f"{items['share_of_top_10_percent']:.1%}",
        "Gini of items": f"{items['gini']:.3f}",
        "first interaction": first,
        "last interaction": last,
    }
    if info := facts["item_information"]:
        for name, count in info["items_with"].items():
            figures[f"items with {clean_line(name, width=_NAME)}"] = f"{count:,}"
        for name, total in info["totals"].items():
            figures[f"sum of {name}"] = f"{total:,}"
        if "tags" in info:
            figures["tags"] = f"{info['tags']:,}"
            for place, tag in enumerate(info["most_frequent_tags"][:3], start=1):
                name = clean_line(tag["tag"], width=_NAME)
                figures[f"tag {place}"] = f"{name} ({tag['items']:,} items)"
    return figures


def _names(directories: Sequence[str | Path]) -> list[str]:
    """Returns the names of the folders if they differ, otherwise their paths."""
    paths = [Path(directory).resolve() for directory in directories]
    for names in ([path.name for path in paths], [str(path) for path in paths]):
        if len(set(names)) == len(names):
            return names
    raise UserError(f"a dataset is named twice: {' '.join(map(str, directories))}; name each once")
