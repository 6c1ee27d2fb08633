"""Prints the test metrics of one run or of several side by side, with their baselines.

python -m pixelrec_jax.report runs/pixel runs/id --examples=3
"""

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich import box
from rich.table import Table

from pixelrec_jax import errors, storage
from pixelrec_jax.data.split import LEAVE_ONE_OUT
from pixelrec_jax.errors import UserError
from pixelrec_jax.text import render

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
    results = [read_result(storage.path(workdir)) for workdir in workdirs]
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
    grids = []
    for part, title in _SLICES.items():
        if part == "cold":
            title += f" (at most {test['cold_threshold']} training interactions)"
        grid = Table(
            title=f"{first['dataset']}{_split(first)}: {title}, {test['users'][part]:,} users, "
            f"{test['items']:,} items ranked, percent",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        grid.add_column("")
        for name in names:
            grid.add_column(name, justify="right")
        for label, metrics in rows:
            grid.add_row(label, *(_cell(metrics[part][name]) for name in names))
        grids.append(grid)
    return render(grids)


def _split(result: dict) -> str:
    settings = result.get("split", LEAVE_ONE_OUT)  # the only one of earlier versions
    if settings == LEAVE_ONE_OUT:
        return ""
    options = ", ".join(f"{key} {value}" for key, value in settings.items() if key != "name")
    return f" split by {settings['name']} ({options})"


def _measured_on(result: dict) -> tuple:
    test = result["test"]
    kept = ("users", "items", "cold_threshold")
    same = [test[key] for key in kept]
    return result["interactions"], _split(result), *same, *test["random"]["all"]


def _cell(estimate: dict) -> str:
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return "no users"
    interval = "" if low is None else f" [{100 * low:5.2f}, {100 * high:5.2f}]"
    return f"{100 * value:.2f}{interval}"


def _define_flags() -> None:
    # Not at import: pixelrec_jax.main imports `table` and has flags of its own.
    flags.DEFINE_integer("examples", 0, "users to show with histories and recommendations", 0)
    flags.DEFINE_integer("seed", 0, "which users these are", 0)


def main(argv: Sequence[str]) -> None:
    """Prints the table of the runs named on the command line, and examples if asked to."""
    workdirs = [storage.path(workdir) for workdir in argv[1:]]
    print(table(workdirs))
    if not flags.FLAGS.examples:
        return
    from pixelrec_jax import examples  # JAX with it, which takes seconds to start

    for workdir in workdirs:
        print(f"\n{workdir}")
        print(examples.show(workdir, users=flags.FLAGS.examples, seed=flags.FLAGS.seed))


if __name__ == "__main__":
    _define_flags()
    errors.run(main, arguments="WORKDIR [WORKDIR ...]")
