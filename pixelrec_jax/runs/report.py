"""The table of finished runs: their test metrics side by side, with their baselines."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table

from pixelrec_jax.data.split import LEAVE_ONE_OUT
from pixelrec_jax.evaluation.result import RESULT, Estimate, Result
from pixelrec_jax.system import storage
from pixelrec_jax.system.console import render
from pixelrec_jax.system.errors import UserError

_GROUPS: dict[Literal["all", "cold"], str] = {"all": "all test targets", "cold": "cold targets"}


def read_result(workdir: Path) -> Result:
    """Returns the content of result.json.

    Raises:
      UserError: the folder holds no finished run, or a damaged result.
    """
    try:
        return RESULT.read(workdir / RESULT.name)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{workdir} holds no {RESULT.name}; finish its run with pixelrec train "
            f"--workdir={workdir}"
        ) from None


def table(workdirs: Sequence[str | Path], *, unfinished: bool = False) -> str:
    """Returns a text table: one row per run and baseline, in percent, with 95 % intervals.

    A run's row also has the size of its model: millions of parameters, and of trained ones. With
    `unfinished`, a folder without a result has a row that says so; otherwise it is an error.

    Raises:
      UserError: a folder has no result, no folder has one, or runs used different data or settings.
    """
    runs = []
    for workdir in map(storage.path, workdirs):
        there = not unfinished or (workdir / RESULT.name).exists()
        runs.append((workdir, read_result(workdir) if there else None))
    finished = [(workdir, result) for workdir, result in runs if result]
    if not finished:
        raise UserError(f"none of the {len(runs)} runs has a result yet; look into their logs")
    reference, first = finished[0]
    for workdir, result in finished:
        if _measured_on(result) != _measured_on(first):
            raise UserError(
                f"{workdir} and {reference} are runs on different data, or with other splits or "
                "eval settings; compare runs that agree in all of them"
            )
    rows: list[tuple[str, str, str, Any]] = [
        (name, "", "", first["test"][name]) for name in ("random", "popularity")
    ]
    for workdir, result in runs:
        if result is None:
            rows.append((f"no result yet ({workdir})", "", "", None))
            continue
        model = result["model"]
        label = f"{model['user']}, item={model['item']}"
        label += f" ({workdir})" if len(runs) > 1 else ""
        size, trained = (
            f"{model[key] / 1e6:,.2f}" for key in ("parameters", "trainable_parameters")
        )
        rows.append((label, size, trained, result["test"]["model"]))
    test = first["test"]
    names = list(test["model"]["all"])
    grids = []
    for group, title in _GROUPS.items():
        if group == "cold":
            title += f" (at most {test['cold_threshold']} training interactions)"
        grid = Table(
            title=f"{first['dataset']}{_split(first)}: {title}, {test['users'][group]:,} users, "
            f"{test['items']:,} items ranked, percent",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        grid.add_column("")
        for name in ("M parameters", "M trained", *names):
            grid.add_column(name, justify="right")
        for *labels, metrics in rows:
            cells = [_cell(metrics[group][name]) for name in names] if metrics else []
            grid.add_row(*labels, *cells)
        grids.append(grid)
    return render(grids)


def _split(result: Result) -> str:
    settings = result["split"]
    if settings == LEAVE_ONE_OUT:
        return ""
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
    return f" split by {settings['name']} ({options})"


def _measured_on(result: Result) -> tuple:
    test = result["test"]
    kept = ("users", "items", "cold_threshold")
    same = [test[key] for key in kept]
    return result["interactions"], _split(result), *same, *test["random"]["all"]


def _cell(estimate: Estimate) -> str:
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return "no users"
    interval = "" if low is None or high is None else f" [{100 * low:5.2f}, {100 * high:5.2f}]"
    return f"{100 * value:.2f}{interval}"
