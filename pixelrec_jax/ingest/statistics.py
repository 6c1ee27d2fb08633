"""Statistics of a prepared dataset as in PixelRec (section 2.3: Tables 2-3, Figures 5-6)."""

import datetime
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from pixelrec_jax.data import item_info
from pixelrec_jax.data.interactions import Interactions
from pixelrec_jax.data.time_units import UNITS
from pixelrec_jax.ingest.item_info import COUNTS
from pixelrec_jax.ingest.timestamps import recognise_unit

_ROWS_PER_BLOCK = 8_000_000  # bounds the memory of counting, whatever the size of the dataset
_TAGS = 20  # how many of the most frequent tags are listed


@dataclass(frozen=True)
class Distribution:
    """The distribution of the number of interactions over users (or items).

    Attributes:
      values: int64[V], the numbers of interactions that occur, ascending.
      counts: int64[V], how many users (items) have each number.
    """

    values: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Distribution":
        """Returns the distribution of int[...] numbers, by counting and not by sorting."""
        counts = np.bincount(numbers)
        values = np.flatnonzero(counts)
        return cls(values, counts[values])

    def quantile(self, q: float) -> float:
        """Returns the value with a fraction q below it, interpolated linearly as in NumPy."""
        last = np.cumsum(self.counts)
        place = q * (last[-1] - 1)
        below, above = (
            self.values[np.searchsorted(last, whole, side="right")]
            for whole in (np.floor(place), np.ceil(place))
        )
        return float(below + (above - below) * (place % 1))

    def share_between(self, low: int, high: int) -> float:
        """Returns the share of users (items) with low to high interactions, both included."""
        inside = (self.values >= low) & (self.values <= high)
        return float(self.counts[inside].sum() / self.counts.sum())

    def share_of_top(self, fraction: float) -> float:
        """Returns the share of interactions that the top fraction (rounded up) of users has.

        The same of items, for a distribution over items.
        """
        left = int(np.ceil(fraction * self.counts.sum()))
        counts, values = self.counts[::-1], self.values[::-1]
        taken = np.clip(left - (np.cumsum(counts) - counts), 0, counts)
        return float((taken * values).sum() / (counts * values).sum())

    def gini(self) -> float:
        """Returns the Gini coefficient: 0 if all have equal numbers, near 1 if one has all."""
        total = self.values * self.counts
        # Twice the area under the Lorenz curve, which is straight between two values.
        cumulative = np.cumsum(total) / total.sum()
        width = self.counts / self.counts.sum()
        return float(1 - (width * (2 * cumulative - total / total.sum())).sum())

    def summary(self) -> dict[str, float | int]:
        """Returns minimum, mean, quantiles and maximum."""
        mean = float((self.values * self.counts).sum() / self.counts.sum())
        return {
            "least": int(self.values[0]),
            "median": self.quantile(0.5),
            "mean": mean,
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "most": int(self.values[-1]),
        }

    def histogram(self) -> dict[str, list[int]]:
        """Returns the distribution in JSON types."""
        return {"interactions": self.values.tolist(), "count": self.counts.tolist()}


@dataclass(frozen=True)
class Statistics:
    """The result of `analyze`: facts in JSON types, and the two distributions behind them."""

    facts: dict[str, Any]
    session_length: Distribution  # interactions per user
    popularity: Distribution  # interactions per item


def analyze(interactions: Interactions) -> Statistics:
    """Returns the statistics, counted in blocks of the memory-mapped columns."""
    popularity = np.zeros(interactions.num_items, np.int64)
    for start in range(0, len(interactions.items), _ROWS_PER_BLOCK):
        block = interactions.items[start : start + _ROWS_PER_BLOCK]
        popularity += np.bincount(block, minlength=interactions.num_items)
    popularity = popularity[1:]  # item 0 is padding
    of_users = Distribution.of(np.diff(interactions.offsets[1:]))
    of_items = Distribution.of(popularity)
    counts = interactions.manifest["counts"]
    info = item_info.load(interactions)
    facts = {
        **counts,
        "sparsity": 1 - counts["interactions"] / (counts["users"] * counts["items"]),
        "session_length": {
            **of_users.summary(),
            "share_from_10_to_20": of_users.share_between(10, 20),
        },
        "popularity": {
            **of_items.summary(),
            "most_popular_item": interactions.item_ids()[int(popularity.argmax())],
            "share_of_top_1_percent": of_items.share_of_top(0.01),
            "share_of_top_10_percent": of_items.share_of_top(0.1),
            "gini": of_items.gini(),
        },
        "timestamps": _timestamps(interactions),
        "item_information": None if info is None else _information(info, popularity),
        "session_length_histogram": of_users.histogram(),
        "popularity_histogram": of_items.histogram(),
    }
    return Statistics(facts, of_users, of_items)


def _timestamps(interactions: Interactions) -> dict[str, Any]:
    """Returns the unit and the range, with dates if the unit counts from 1970."""
    unit, timestamps = interactions.manifest["timestamp_unit"], interactions.timestamps
    first, last = int(timestamps.min()), int(timestamps.max())
    dates = None
    if unit in UNITS and unit == recognise_unit(timestamps):
        seconds = (t * UNITS[unit] // UNITS["seconds"] for t in (first, last))
        dates = [datetime.datetime.fromtimestamp(s, datetime.UTC).isoformat() for s in seconds]
    return {"unit": unit, "first": first, "last": last, "dates": dates}


def _information(info: pl.DataFrame, popularity: np.ndarray) -> dict[str, Any]:
    """Returns how many items have a value in each column, the totals of counts, and the tags."""
    columns = [name for name in info.columns if name != "item_id"]
    facts = {
        "items_with": {name: info.height - info[name].null_count() for name in columns},
        "totals": {
            name: info[name].sum()
            for name in COUNTS
            if name in columns and info[name].dtype == pl.Int64
        },
    }
    if "tag" in columns:
        tags = pl.DataFrame({"tag": info["tag"], "interactions": popularity}).drop_nulls()
        tags = tags.group_by("tag").agg(pl.len().alias("items"), pl.col("interactions").sum())
        facts["tags"] = len(tags)
        facts["most_frequent_tags"] = (
            tags.sort("items", "tag", descending=[True, False]).head(_TAGS).to_dicts()
        )
    return facts
