"""Prints the test metrics of one run or of several side by side, with their baselines.

python -m pixelrec_jax.report runs/pixel runs/id
"""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pixelrec_jax.data.split import LEAVE_ONE_OUT
from pixelrec_jax.errors import UserError

_SLICES = {"all": "all test targets", "cold": "cold targets"}


def read_result(workdir: Path) -> dict:
    """Returns the content of result.json.

    Raises:
      UserError: the folder holds no finished run.
    """
    try:
        result = json.loads((workdir / "result.json").read_text())
        _measured_on(result)  # has all the parts of a result
        return result
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{workdir} holds no result.json; finish its run with python -m pixelrec_jax.main "
            f"--workdir={workdir}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir}/result.json is no result of this program ({error}); write it again with "
            f"python -m pixelrec_jax.main --mode=evaluate --workdir={workdir}"
        ) from None


def table(workdirs: Sequence[Path]) -> str:
    """Returns a text table: one row per run and baseline, in percent, with 95 % intervals.

    Raises:
      UserError: a folder without a result, or runs on different datasets.
    """
    results = [read_result(Path(workdir)) for workdir in workdirs]
    first = results[0]
    for workdir, result in zip(workdirs, results, strict=True):
        if _measured_on(result) != _measured_on(first):
            raise UserError(
                f"{workdir} and {workdirs[0]} are runs on different data, or with other splits or "
                "eval settings; compare runs that agree in all of them"
            )
    rows = [(name, first["test"][name]) for name in ("random", "popularity")]
    for workdir, result in zip(workdirs, results, strict=True):
        label = f"{result['model']['user']}, item={result['model']['item']}"
        label += f" ({workdir})" if len(results) > 1 else ""
        rows.append((label, result["test"]["model"]))
    test = first["test"]
    names = list(test["model"]["all"])
    text = io.StringIO()
    console = Console(file=text, width=1000)  # the table is as wide as it needs to be
    for part, title in _SLICES.items():
        if part == "cold":
            title += f" (at most {test['cold_threshold']} training interactions)"
        grid = Table(
            title=f"{first['dataset']}: {title}, {test['users'][part]:,} users, "
            f"{test['items']:,} items ranked, percent",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        grid.add_column("")
        for name in names:
            grid.add_column(name, justify="right")
        for label, metrics in rows:
            grid.add_row(label, *(_cell(metrics[part][name]) for name in names))
        console.print(grid)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _measured_on(result: dict) -> tuple:
    test = result["test"]
    kept = ("users", "items", "cold_threshold")
    split = result.get("split", LEAVE_ONE_OUT)  # the only one of earlier versions
    return result["interactions"], split, *(test[key] for key in kept), *test["random"]["all"]


def _cell(estimate: dict) -> str:
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return "no users"
    interval = "" if low is None else f" [{100 * low:5.2f}, {100 * high:5.2f}]"
    return f"{100 * value:.2f}{interval}"


def main(argv: Sequence[str]) -> int:
    """Prints the table of the runs named on the command line."""
    try:
        if not argv or argv[0].startswith("-"):
            raise UserError("usage: python -m pixelrec_jax.report WORKDIR [WORKDIR ...]")
        print(table([Path(workdir) for workdir in argv]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
