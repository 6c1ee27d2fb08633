"""The table of finished runs: their test metrics side by side, with their baselines."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pixelrec_jax.data.split import LEAVE_ONE_OUT
from pixelrec_jax.evaluation.result import RESULT, Estimate, Groups, Result
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.foreign import csv_cell
from pixelrec_jax.system.sheets import Sheet, as_latex, as_markdown, as_text

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


class _Row(NamedTuple):
    """A run or a baseline: its label, its result if it is a run, and its metrics by group."""

    label: str
    result: Result | None
    metrics: Groups | None


def table(workdirs: Sequence[str | Path], *, unfinished: bool = False, form: str = "text") -> str:
    """Returns a table: one row per run and baseline, in percent, with 95 % intervals.

    A second table has the sizes of the models: millions of parameters, and of trained ones.

    Args:
      workdirs: the folders of the runs.
      unfinished: whether a folder without a result has a row that says so, and is not an error.
      form: one of `FORMATS`.

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
    rows = [_Row(name, None, first["test"][name]) for name in ("random", "popularity")]
    for workdir, result in runs:
        if result is None:
            rows.append(_Row(f"no result yet ({workdir})", None, None))
            continue
        model = result["model"]
        label = f"{model['user']}, item={model['item']}"
        label += f" ({workdir})" if len(runs) > 1 else ""
        rows.append(_Row(label, result, result["test"]["model"]))
    return FORMATS[form](first, rows)


def _sheets(first: Result, rows: Sequence[_Row]) -> list[Sheet]:
    test, sheets = first["test"], []
    names = list(test["model"]["all"])
    for group, title in _GROUPS.items():
        if group == "cold":
            title += f" (at most {test['cold_threshold']} training interactions)"
        lines = [("percent", *names)]
        for label, _, metrics in rows:
            cells = [_cell(metrics[group][name]) if metrics else "" for name in names]
            lines.append((label, *cells))
        sheets.append(
            Sheet(
                f"{first['dataset']}{_split(first)}: {title}, {test['users'][group]:,} users, "
                f"{test['items']:,} items ranked",
                lines,
            )
        )
    models = [(label, *_sizes(result)) for label, result, _ in rows if result]
    return [*sheets, Sheet("Millions of parameters", [("", "all", "trained"), *models])]


def _sizes(result: Result) -> list[str]:
    model = result["model"]
    return [f"{model[key] / 1e6:,.2f}" for key in ("parameters", "trainable_parameters")]


def _as_csv(first: Result, rows: Sequence[_Row]) -> str:
    """Returns a line for each row and group of targets; numbers are in percent."""
    text, names = io.StringIO(), list(first["test"]["model"]["all"])
    lines = csv.writer(text, lineterminator="\n")
    metrics = [f"{name}{end} (%)" for name in names for end in ("", " low", " high")]
    lines.writerow(["run", "targets", "parameters", "trainable_parameters", *metrics])
    for label, result, known in rows:
        if known is None:
            continue
        model = result["model"] if result else None
        sizes = [model["parameters"], model["trainable_parameters"]] if model else ["", ""]
        for group in _GROUPS:
            estimates = [known[group][name] for name in names]
            ends = [x for each in estimates for x in (each["value"], each["low"], each["high"])]
            percent = ["" if x is None else f"{100 * x:.4f}" for x in ends]
            lines.writerow([csv_cell(label), group, *sizes, *percent])
    return text.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Result, Sequence[_Row]], str]] = {
    "text": lambda first, rows: as_text(_sheets(first, rows)),
    "markdown": lambda first, rows: as_markdown(_sheets(first, rows)),
    "latex": lambda first, rows: as_latex(_sheets(first, rows)),
    "csv": _as_csv,
}


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
    if low is None or high is None:
        return f"{100 * value:.2f}"
    return f"{100 * value:.2f} ±{100 * max(high - value, value - low):.2f}"
