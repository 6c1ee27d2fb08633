"""Writers of a run's scalars beside metrics.jsonl: TensorBoard, and experiment trackers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from ml_collections import ConfigDict
from tensorboardX import SummaryWriter
from tensorboardX.summary import scalar

from pixelrec_jax.system import storage
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import TransientError, UserError, nearest, reason
from pixelrec_jax.system.redact import redacted
from pixelrec_jax.system.schema import Document

_IDS = "trackers.json"  # the id of this workdir's run in each tracker
TRACKER_IDS = Document(_IDS, dict[str, str], "remove it: the trackers then begin new runs")


class Writer(Protocol):
    """Writes the scalars of a run."""

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of a step."""
        ...

    def close(self, *, failed: bool) -> None:
        """Closes the writer; `failed` says that the run ended early."""
        ...


class TensorBoard:
    """Writes TensorBoard events."""

    def __init__(self, folder: Path, *, continue_from: int):
        """Opens a local folder; events of steps after `continue_from` are marked as void."""
        self._events = SummaryWriter(str(folder), purge_step=continue_from + 1, write_to_disk=True)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of a step under their own names, with the "@" of "ndcg@10"."""
        assert self._events.file_writer is not None
        for name, value in scalars.items():
            summary = scalar(name, value)
            summary.value[0].tag = name  # `scalar` replaces "@", which TensorBoard takes
            self._events.file_writer.add_summary(summary, step)

    def flush(self) -> None:
        """Writes all events to the disk."""
        self._events.flush()

    def close(self, *, failed: bool) -> None:
        """Closes the event file."""
        del failed
        self._events.close()


class WeightsAndBiases:
    """Writes to a run of Weights & Biases, which is set up by its own environment variables."""

    def __init__(self, workdir: Path, config: ConfigDict):
        """Starts a run, or continues the one of this workdir."""
        known = _read_ids(workdir).get("wandb")
        self._run = _module("wandb").init(
            project="pixelrec_jax",
            name=workdir.name,
            id=known,
            resume="allow",
            dir=None if storage.is_remote(workdir) else workdir,  # for its own files
            config=redacted(config.to_dict()),
        )
        _keep_id(workdir, "wandb", self._run.id)
        # Its own counter only grows, but a restart repeats steps: plots use `step` instead.
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of a step."""
        self._run.log({"step": step, **scalars})

    def close(self, *, failed: bool) -> None:
        """Ends the run in Weights & Biases."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """Writes to a run of MLflow, which is set up by its own environment variables."""

    def __init__(self, workdir: Path, config: ConfigDict):
        """Starts a run, or continues the one of this workdir."""
        self._mlflow = _module("mlflow")
        known = _read_ids(workdir).get("mlflow")
        run = self._call(self._mlflow.start_run, run_id=known, run_name=workdir.name)
        _keep_id(workdir, "mlflow", run.info.run_id)
        if known is None:  # a parameter of a run cannot change
            self._call(self._mlflow.log_params, flatten(redacted(config.to_dict())))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes the scalars of a step; "_at_" replaces "@", which MLflow does not allow."""
        named = {name.replace("@", "_at_"): value for name, value in scalars.items()}
        self._call(self._mlflow.log_metrics, named, step=step)

    def close(self, *, failed: bool) -> None:
        """Ends the run in MLflow."""
        self._call(self._mlflow.end_run, "FAILED" if failed else "FINISHED")

    def _call(self, function: Callable[..., Any], *arguments: object, **options: object) -> Any:
        try:
            return function(*arguments, **options)
        except self._mlflow.exceptions.MlflowException as error:
            raise TransientError(
                f"MLflow failed ({reason(error)}); start the same command again to continue, or "
                "leave mlflow out of log.writers"
            ) from None


# By the name in `log.writers`, which is also the name of the package and of the extra.
TRACKERS: dict[str, Callable[[Path, ConfigDict], Writer]] = {
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


def check_writers(option: Sequence[str]) -> list[str]:
    """Returns the names in `log.writers`; a string may hold several names, separated by commas.

    Raises:
      UserError: a name is unknown, or its package is not installed.
    """
    names = [name for names in option for name in names.split(",")]
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"log.writers: unknown writer {name!r}{nearest(name, TRACKERS)}")
        _module(name)
    return names


def open_trackers(workdir: Path, config: ConfigDict) -> list[Writer]:
    """Returns the writers that `log.writers` names, opened for this workdir.

    Raises:
      UserError: as `check_writers`.
    """
    return [TRACKERS[name](workdir, config) for name in check_writers(config.log.writers)]


def _module(name: str) -> ModuleType:
    try:
        match name:
            case "wandb":
                import wandb

                return wandb
            case _:
                import mlflow

                return mlflow
    except ImportError:
        raise UserError(
            f"log.writers={name} needs a package that is not installed; pip install "
            f"'pixelrec_jax[{name}]', or leave it out"
        ) from None


def _read_ids(workdir: Path) -> dict[str, str]:
    path = workdir / _IDS
    return TRACKER_IDS.read(path) if path.exists() else {}


def _keep_id(workdir: Path, name: str, id_: str) -> None:
    TRACKER_IDS.write(workdir / _IDS, {**_read_ids(workdir), name: id_})
