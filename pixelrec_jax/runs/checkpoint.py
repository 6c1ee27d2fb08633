"""Checkpoints: state, position in the data and config; the best and the latest one are kept."""

import logging
import shutil
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging as absl_logging
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import TransientError, UserError
from pixelrec_jax.weights import partition

_policies = ocp.training.preservation_policies
SAVE_SECONDS = 600  # that a process waits for the others to write their shards, as one may fail
# Orbax's errors for missing, cut or scrambled files of a checkpoint.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, ocp.errors.InvalidLayoutError)


class Checkpoints:
    """The checkpoints in one directory; a context manager that waits for the last save.

    Saving is asynchronous and atomic: a checkpoint counts once it is complete, so that a run killed
    during a save continues from the one before. A complete one that cannot be opened ends the run.
    """

    def __init__(self, directory: Path, *, metric: str, read_only: bool = False):
        """Opens a directory; without `read_only` it removes incomplete saves, so open it only once.

        Args:
          directory: the directory of the checkpoints.
          metric: the metric that decides which checkpoint is the best; higher is better.
          read_only: whether nothing is written.
        """
        self.directory, self._metric = directory, metric
        self._pending: tuple[int, Any] | None = None  # step and shapes of the save in progress
        if read_only and not self.directory.is_dir():
            raise UserError(f"{self.directory} does not exist; train first with --mode=train")
        best = _policies.BestN(
            get_metric_fn=self._value, n=1, keep_checkpoints_without_metrics=False
        )
        context = ocp.Context()
        context.asynchronous.timeout_secs = SAVE_SECONDS
        # Replicas share the writing of large arrays; for small ones, slices would take longer.
        context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
        # Orbax declares policies for metrics of dicts, and its checkpoints have any JSON.
        policy: Any = _policies.AnyPreservationPolicy([_policies.LatestN(1), best])
        self._checkpointer = ocp.training.Checkpointer(
            str(directory if storage.is_remote(directory) else directory.absolute()),
            preservation_policy=policy,
            cleanup_tmp_directories=not read_only,
            context=context,
        )
        # Orbax logs a failed write in each of its threads and also raises it: once is enough.
        absl_logging.get_absl_logger().addFilter(_is_news)
        self._excepthook, threading.excepthook = threading.excepthook, self._report_thread

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.wait()  # also after an interrupt, when a save is nearly complete
        except UserError:
            if error is None:
                raise
        self._checkpointer.close()
        absl_logging.get_absl_logger().removeFilter(_is_news)
        threading.excepthook = self._excepthook

    def _report_thread(self, args: Any) -> None:
        frames = traceback.extract_tb(args.exc_traceback)
        if not any("orbax" in frame.filename for frame in frames):
            self._excepthook(args)

    def _value(self, metrics: Any) -> float:
        return metrics[self._metric]

    @property
    def latest(self) -> int | None:
        """The step of the latest complete checkpoint, None if there is none."""
        return self._checkpointer.latest.step if self._checkpointer.latest else None

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the best metric; the latest one of equals."""
        scored = [c for c in self._checkpointer.checkpoints if c.metrics]
        return max(scored, key=lambda c: (self._value(c.metrics), c.step)).step if scored else None

    def save(self, step: int, state: Any, metadata: dict, metrics: dict | None) -> None:
        """Waits for the save before, then starts to save a pytree of arrays and JSON metadata.

        Raises:
          UserError: a save could not be written, for example to a full disk.
        """
        self.wait()
        try:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
            self._pending = step, shapes
            self._checkpointer.save_async(
                step, state, custom_metadata=metadata, metrics=metrics, force=True
            )
        except (OSError, ValueError) as error:
            raise self._unwritable(step, error) from error

    def wait(self) -> None:
        """Waits until the save in progress is complete, then opens what it wrote.

        Raises:
          UserError: it could not be written, or not all arrays are there with their shapes.
        """
        if self._pending is None:
            return
        step, shapes = self._pending
        try:
            self._checkpointer.wait()
        except (OSError, ValueError) as error:
            raise self._unwritable(step, error) from error
        self._pending = None
        try:
            _check_shapes(self._checkpointer.metadata(step).metadata, shapes)
        except _UNREADABLE as error:
            raise self._unreadable(step, error) from error

    def metadata(self, step: int) -> dict:
        """Returns the metadata of a checkpoint."""
        try:
            metadata = self._checkpointer.metadata(step).custom_metadata
            if not isinstance(metadata, dict):
                raise TypeError(f"its metadata is {metadata!r}")
            return metadata
        except _UNREADABLE as error:
            raise self._unreadable(step, error) from error

    def restore(self, step: int, template: Any) -> Any:
        """Returns the state of a checkpoint; `template` gives shapes, dtypes and shardings.

        Padding rows of tables (`tables.pad_rows`) depend on the mesh: missing ones are filled with
        zeros, and ones that this mesh does not need are left out.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template
        )
        loading = ocp.options.ArrayOptions.Loading(enable_padding_and_truncation=True)
        try:
            _check_shapes(self._checkpointer.metadata(step).metadata, abstract)
            with ocp.Context(array_options=ocp.options.ArrayOptions(loading=loading)):
                return self._checkpointer.load(step, abstract)
        except _UNREADABLE as error:
            raise self._unreadable(step, error) from error

    def read(self, step: int, fields: Sequence[str]) -> dict:
        """Returns some fields of a checkpoint's state as NumPy arrays in nested dicts."""
        loading = ocp.options.PyTreeOptions.Loading(partial_load=True)
        try:
            saved = self._checkpointer.metadata(step).metadata
            template = {name: saved[name] for name in fields}
            template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
            with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
                return self._checkpointer.load(step, template)
        except _UNREADABLE as error:
            raise self._unreadable(step, error) from error

    def _unreadable(self, step: int, error: Exception) -> UserError:
        others = [c.step for c in self._checkpointer.checkpoints if c.step != step]
        remedy = f"remove it to continue from step {max(others)}" if others else "no other is left"
        return UserError(
            f"the checkpoint {self.directory / str(step)} is damaged or incomplete "
            f"({_first_line(error)}); {remedy}, or start in a new workdir"
        )

    def _unwritable(self, step: int, error: Exception) -> UserError:
        self._pending = None
        with suppress(OSError):  # object storage may still be out of reach
            if jax.process_count() == 1:  # otherwise others may still write; the next run cleans up
                for incomplete in self.directory.glob("*.orbax-checkpoint-tmp"):
                    shutil.rmtree(incomplete, ignore_errors=True)
            self._checkpointer.reload()
        kept = (
            f"the last complete one is of step {self.latest}" if self.latest else "none is complete"
        )
        remote = storage.is_remote(self.directory)
        remedy = "check the network" if remote else "free space"
        return (TransientError if remote else UserError)(
            f"the checkpoint of step {step} could not be written to {self.directory} "
            f"({_first_line(error)}); {kept}; {remedy} and start again with the same command"
        )


def _check_shapes(saved: Any, template: Any) -> None:
    """Raises `ValueError` if an array is missing or has another shape, up to a table's rows."""

    def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves}

    there, here = shapes(saved), shapes(template)
    if absent := here.keys() - there.keys():
        raise ValueError(f"{min(absent)} is missing")
    for name, shape in here.items():
        rows = 1 if name.endswith("/table") else 0
        if len(there[name]) != len(shape) or there[name][rows:] != shape[rows:]:
            raise ValueError(f"{name} is {list(there[name])}, expected {list(shape)}")


def resume_hint(directory: Path) -> str:
    """Returns how to continue a run that ended without warning, and from which step.

    Reads the directory only, so that any thread can call it without `Checkpoints`.
    """
    complete = directory.glob("*/commit_success.txt")
    steps = [int(path.parent.name) for path in complete if path.parent.name.isdigit()]
    if not steps:
        return "no checkpoint is complete; start all processes again"
    return (
        f"the last complete checkpoint is of step {max(steps)}; start all processes again with the "
        "same command to continue from there"
    )


def _is_news(record: logging.LogRecord) -> bool:
    return record.levelno < logging.WARNING or "orbax" not in record.pathname


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    for known in ("No space left on device", "File too large", "Permission denied"):
        if known in text:
            return known
    return text[:200]


def best_variables(workdir: Path, config: ConfigDict) -> tuple[int, dict]:
    """Returns the step of a run's best checkpoint and the variables of its whole model.

    Raises:
      UserError: no checkpoint was evaluated yet.
    """
    directory = workdir / "checkpoints"
    with Checkpoints(directory, metric=config.eval.monitor, read_only=True) as checkpoints:
        best = checkpoints.best
        if best is None:
            raise UserError(f"{workdir} holds no evaluated checkpoint yet; train it first")
        state = checkpoints.read(best, ("trainable", "frozen", "model_state"))
    params = partition.merge(state["trainable"], state["frozen"])
    return best, {"params": params, **state["model_state"]}
