"""result.json: the model, data and test metrics of a finished run; importing this is quick."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from pixelrec_jax.system.schema import Count, Document, open_record, record

Fraction = Annotated[float, Field(ge=0, le=1)]


@record
class Estimate(TypedDict):
    """A metric and its 95 % interval; None without users, and for an interval of an exact value."""

    value: Fraction | None
    low: Fraction | None
    high: Fraction | None


Metrics = dict[str, Estimate]  # by name, as in "recall@10"


@record
class Groups(TypedDict):
    """Metrics over all targets, and over cold ones."""

    all: Metrics
    cold: Metrics


@record
class Users(TypedDict):
    """Numbers of ranked users, of all targets and of cold ones."""

    all: Count
    cold: Count


@record
class Report(TypedDict):
    """The metrics of a model on a holdout, beside those of popularity and of chance."""

    split: Literal["valid", "test"]
    users: Users
    repeated_targets: Count
    items: Count
    cold_threshold: Count
    model: Groups
    popularity: Groups
    random: Groups


@record
class Model(TypedDict):
    """A model by the names of its encoders, and its size."""

    user: str
    item: str
    parameters: Count
    trainable_parameters: Count


@open_record
class SplitSettings(TypedDict, extra_items=int | float):
    """The settings of a split: its name, and its own ones, which are numbers."""

    name: str


def _same_metrics(report: Report) -> Report:
    """Returns a report; raises `ValueError` if a group lacks a metric that another one has."""
    rankings = (report["model"], report["popularity"], report["random"])
    names = [set(metrics) for groups in rankings for metrics in (groups["all"], groups["cold"])]
    if any(other != names[0] for other in names) or not names[0]:
        raise ValueError("its groups do not have the same metrics")
    return report


@record
class Result(TypedDict):
    """The content of result.json.

    `interactions` is a hash of them, "" for data in memory.
    """

    model: Model
    dataset: str
    interactions: str
    split: SplitSettings
    best_step: Count
    test: Annotated[Report, AfterValidator(_same_metrics)]


RESULT = Document(
    "result.json",
    Result,
    "write it again with pixelrec train --mode=evaluate --workdir={folder}",
)
