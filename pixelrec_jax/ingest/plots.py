"""Pictures of datasets as in PixelRec: sizes, popularity, session lengths (Figures 4-6)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from pixelrec_jax.ingest.official import OFFICIAL
from pixelrec_jax.ingest.statistics import Statistics

_SHOWN = 0.99  # share of sessions in the histogram; the longest ones would flatten it
_AREA = 40  # of a circle, in square points for each factor of ten of interactions


def draw(datasets: Mapping[str, Statistics], place: Callable[[str], Path]) -> None:
    """Writes sizes.png, popularity.png and session_length.png of datasets, given by name.

    `place` returns the path to write for the name of a file.
    """
    datasets = {_literal(name): dataset for name, dataset in datasets.items()}
    plots = {"sizes": _sizes, "popularity": _popularity, "session_length": _session_length}
    for name, plot in plots.items():
        # Without pyplot there is no global state, and no screen is needed.
        figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)
        plot(axes, datasets)
        figure.savefig(place(f"{name}.png"), format="png")


def _literal(name: str) -> str:
    # In Matplotlib, text between two $ is a formula, and a label with a leading _ is hidden.
    name = name.replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def _sizes(axes: Axes, datasets: Mapping[str, Statistics]) -> None:
    """Draws Figure 4, together with the official versions of PixelRec."""
    paper = ("Pixel200K", "Pixel1M", "Pixel8M", "PixelRec")
    official = {name: OFFICIAL[name].counts for name in paper}
    given = {name: dataset.facts for name, dataset in datasets.items()}
    for name, counts in official.items():
        _circle(axes, name, counts, above=False, edgecolor="0.6", facecolor="none", linestyle="--")
    for name, counts in given.items():
        _circle(axes, name, counts, above=True, color="tab:blue", alpha=0.6)
    _log(axes)
    axes.margins(0.15, 0.2)
    low, high = axes.get_ylim()
    axes.set(
        xlabel="users",
        ylabel="items",
        ylim=(min(low, 1e4), max(high, 1e6)),  # otherwise there may be only one labelled tick
        title="Dataset size: a circle's area grows with the logarithm of its interactions",
    )


def _circle(axes: Axes, name: str, counts: Mapping[str, int], *, above: bool, **style: Any) -> None:
    area = _AREA * np.log10(counts["interactions"] + 1)
    place = counts["users"], counts["items"]
    axes.scatter(*place, s=area, **style)
    distance = np.sqrt(area) / 2 + 2  # in points from the centre
    axes.annotate(
        f"{name}\n{_short(counts['interactions'])}",
        place,
        xytext=(0, distance if above else -distance),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        fontsize=8,
        color="black" if above else "0.5",
    )


def _popularity(axes: Axes, datasets: Mapping[str, Statistics]) -> None:
    """Draws Figures 5 and 6 (a); items of equal popularity are one step of the line."""
    for name, dataset in datasets.items():
        popularity = dataset.popularity
        last = np.cumsum(popularity.counts[::-1])  # the last item of each popularity
        edges = np.concatenate([[0], last]) + 0.5
        axes.stairs(popularity.values[::-1], edges, label=name, baseline=None, linewidth=1.6)
    _log(axes)
    axes.set(
        xlabel="item, most popular first",
        ylabel="interactions of the item",
        title="Item popularity",
    )
    axes.legend(frameon=False)


def _session_length(axes: Axes, datasets: Mapping[str, Statistics]) -> None:
    """Draws Figure 6 (b), as shares of users so that datasets of any size can be compared."""
    last = max(dataset.session_length.quantile(_SHOWN) for dataset in datasets.values())
    width = max(1, round(last / 100))
    edges = np.arange(0.5, last + width + 0.5, width)
    for name, dataset in datasets.items():
        lengths = dataset.session_length
        share = lengths.counts / lengths.counts.sum()
        label = f"{name} (longest {lengths.values[-1]:,})"
        bins = edges.tolist()
        if len(datasets) > 1:  # overlapping filled colours would mix
            axes.hist(
                lengths.values, bins, weights=share, label=label, histtype="step", linewidth=1.4
            )
        else:
            axes.hist(
                lengths.values, bins, weights=share, label=label, histtype="stepfilled", alpha=0.6
            )
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set(
        xlabel=f"interactions of the user, in bins of {width} (at most 1 % of users have more)",
        ylabel="users",
        title="Session length",
        xlim=(0, edges[-1]),
    )
    axes.legend(frameon=False)


def _log(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
        axis.set_minor_formatter(NullFormatter())


def _short(count: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"
