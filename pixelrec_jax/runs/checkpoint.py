"""Checkpoints: state, position in the data and config; the latest two and the best are kept."""

import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from orbax.checkpoint import v1 as ocp

from pixelrec_jax.parallel.distributed import first_problem
from pixelrec_jax.runs.digest import digests
from pixelrec_jax.runs.kept import DamagedError, Kept, Metadata, build_metadata
from pixelrec_jax.runs.quiet import quiet_orbax
from pixelrec_jax.runs.stored import (
    COMMITTED,
    INCOMPLETE,
    STATE,
    check_files,
    check_shapes,
    own_context,
    raise_explained,
)
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.weights import partition

SAVE_SECONDS = 600  # that a process waits for the others to write their shards, as one may fail


class Checkpoints:
    """The checkpoints in one directory; a context manager that waits for the last save.

    Saving is asynchronous and atomic. A checkpoint counts once it is complete and its files were
    read back; only then are older ones deleted. Its metadata hold a digest of each array, with
    which all arrays that are loaded are compared, and one of themselves.
    """

    def __init__(self, directory: Path, *, metric: str, read_only: bool = False):
        """Opens a directory; without `read_only` it removes incomplete saves, so open it only once.

        Args:
          directory: the directory of the checkpoints.
          metric: the metric that decides which checkpoint is the best; higher is better.
          read_only: whether nothing is written.
        """
        self.directory = directory
        # Step, shapes and metadata of the save in progress.
        self._pending: tuple[int, Any, Metadata] | None = None
        if read_only and not directory.is_dir():
            raise UserError(f"{directory} does not exist; train first with --mode=train")
        context = ocp.Context()
        context.asynchronous.timeout_secs = SAVE_SECONDS
        # Replicas share the writing of large arrays; for small ones, slices would take longer.
        context.array.saving.min_slice_bytes_for_replica_parallel = 2**20
        with ExitStack() as stack:
            stack.enter_context(quiet_orbax())
            try:
                self._checkpointer = ocp.training.Checkpointer(
                    str(directory if storage.is_remote(directory) else directory.absolute()),
                    cleanup_tmp_directories=not read_only,
                    context=context,
                )
            except Exception as error:
                raise_explained(f"{directory} cannot be opened", error, directory)
            self._failed = False  # whether a save could not be written
            stack.callback(self._remove_failed)
            stack.callback(self._checkpointer.close)  # first, as its threads may still write
            self._kept = Kept(directory, self._complete(), metric=metric)
            self._stack = stack.pop_all()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self.wait()  # also after an interrupt, when a save is nearly complete
        except UserError:
            if error is None:
                raise
        finally:
            self._stack.close()

    def _complete(self) -> list[int]:
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints that count, the newest first."""
        return self._kept.steps

    @property
    def latest(self) -> int | None:
        """The step of the latest checkpoint, None if there is none."""
        return next(iter(self.steps), None)

    @property
    def best(self) -> int | None:
        """The step of the best checkpoint, None if none was evaluated; errors as `Kept.best`."""
        return self._kept.best

    def metadata(self, step: int) -> dict:
        """Returns the metadata of a checkpoint as they were given to `save`; as `restore`."""
        with self._agreed(step):
            self._kept.metadata(step)
        return self._kept.metadata(step)["run"]

    def save(self, step: int, state: Any, metadata: dict, metrics: dict | None) -> None:
        """Waits for the save before, then starts to save a pytree of arrays and JSON metadata.

        Raises:
          UserError: a save could not be written, for example to a full disk.
        """
        self.wait()
        content: Any = build_metadata(metadata, metrics, digests(state))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        with self._writing(step):
            self._pending = step, shapes, content
            self._checkpointer.save_async(
                step,
                state,
                checkpointable_name=STATE,
                custom_metadata=content,
                force=True,
                # One that is there but does not count is damaged, and could not be moved.
                overwrite=step in self._complete() and step not in self.steps,
            )

    def wait(self) -> None:
        """Waits until the save in progress is complete, then reads back what it wrote.

        Raises:
          UserError: it could not be written, or not all arrays are there with their shapes.
        """
        if self._pending is None:
            return
        step, shapes, metadata = self._pending
        with self._writing(step):
            self._checkpointer.wait()
        self._pending = None
        if jax.process_index() == 0:
            try:
                self._check(step, shapes)
            except DamagedError as error:
                raise UserError(
                    f"the checkpoint of step {step} was written to {self.directory} but is not "
                    f"there as a whole ({error.reason}); {self._left()}; check the disk and start "
                    "again"
                ) from error
        self._kept.unmark(step)
        self._kept.add(step, metadata)

    def restore(self, step: int, template: Any) -> Any:
        """Returns the state of a checkpoint; collective, with one outcome in all processes.

        Padding rows of tables (`tables.pad_rows`) depend on the mesh: missing ones are filled with
        zeros, and ones that this mesh does not need are left out.

        Args:
          step: the step of the checkpoint.
          template: shapes, dtypes and shardings.

        Raises:
          DamagedError: in some process, it does not hold what was saved.
          UserError: its files cannot be read for another reason.
        """
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), template
        )
        with self._agreed(step):
            self._check(step, abstract)
        options = own_context()
        options.array.loading.enable_padding_and_truncation = True
        with self._agreed(step), self._kept.reading(step), options:
            state = self._checkpointer.load(step, abstract, checkpointable_name=STATE)
        self._compare(step, state)
        return state

    def read(self, step: int, fields: Sequence[str]) -> dict:
        """Returns some fields of a checkpoint's state as NumPy arrays in nested dicts.

        Raises:
          DamagedError: they are not what was saved.
          UserError: its files cannot be read for another reason.
        """
        with self._kept.reading(step):
            check_files(self._kept.folder(step))
            saved = self._arrays(step)
            template = {name: saved[name] for name in fields}
            template = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
            options = own_context()
            options.pytree.loading.partial_load = True
            with options:
                state = self._checkpointer.load(step, template, checkpointable_name=STATE)
        self._compare(step, state)
        return state

    def set_aside(self, step: int) -> str:
        """Puts a damaged checkpoint out of the way and returns what was done; collective."""
        done = self._kept.set_aside(step)
        self._checkpointer.reload()
        return done

    def _check(self, step: int, template: Any) -> None:
        """Raises an error unless the metadata, the files and the shapes are those of a save."""
        self._kept.metadata(step)
        with self._kept.reading(step):
            check_files(self._kept.folder(step))
            check_shapes(self._arrays(step), template)

    def _arrays(self, step: int) -> dict:
        """Returns the shapes and dtypes of a checkpoint's arrays in nested dicts."""
        arrays: Any = self._checkpointer.metadata(step).metadata
        if arrays is None:  # orbax has logged why
            raise ValueError("the list of its arrays cannot be read")
        return arrays

    def _compare(self, step: int, state: Any) -> None:
        """Raises `DamagedError` unless the arrays have the digests of those that were saved."""
        saved = self._kept.metadata(step)["digests"]
        wrong = [name for name, digest in digests(state).items() if saved.get(name) != digest]
        if wrong:
            others = f", nor are {len(wrong) - 1} other arrays" if len(wrong) > 1 else ""
            raise self._kept.damaged(step, f"{wrong[0]} is not what was saved{others}")

    def _left(self) -> str:
        latest = f"the last complete one is of step {self.latest}"
        return latest if self.steps else "none is complete"

    @contextmanager
    def _agreed(self, step: int) -> Generator[None]:
        """Raises `DamagedError` in all processes if one raises it in the with statement."""
        problem = ""
        try:
            yield
        except DamagedError as error:
            problem = error.reason
        if problem := first_problem(problem):
            raise self._kept.damaged(step, problem)

    @contextmanager
    def _writing(self, step: int) -> Generator[None]:
        """Explains why a save cannot be written; what was written of it goes at the end."""
        try:
            yield
        except Exception as error:
            self._pending, self._failed = None, True
            with suppress(OSError):  # object storage may still be out of reach
                self._checkpointer.reload()
            what = f"the checkpoint of step {step} could not be written to {self.directory}"
            raise_explained(what, error, self.directory, state=self._left())

    def _remove_failed(self) -> None:
        if self._failed and jax.process_count() == 1:  # others may write; the next run cleans up
            with suppress(OSError):
                for incomplete in self.directory.glob(f"*{INCOMPLETE}"):
                    shutil.rmtree(incomplete, ignore_errors=True)


def resume_hint(directory: Path) -> str:
    """Returns how to continue a run that ended without warning, and from which step.

    Reads the directory only, so that any thread can call it without `Checkpoints`.
    """
    complete = directory.glob(f"*/{COMMITTED}")
    steps = [int(path.parent.name) for path in complete if path.parent.name.isdigit()]
    if not steps:
        return "no checkpoint is complete; start all processes again"
    return (
        f"the last complete checkpoint is of step {max(steps)}; start all processes again with the "
        "same command to continue from there"
    )


def best_variables(workdir: Path, config: ConfigDict) -> tuple[int, dict]:
    """Returns the step of a run's best checkpoint and the variables of its whole model.

    Raises:
      UserError: no checkpoint was evaluated yet, or the best one cannot be read.
    """
    directory = workdir / "checkpoints"
    with Checkpoints(directory, metric=config.eval.monitor, read_only=True) as checkpoints:
        best = checkpoints.best
        if best is None:
            raise UserError(f"{workdir} holds no evaluated checkpoint yet; train it first")
        state = checkpoints.read(best, ("trainable", "frozen", "model_state"))
    params = partition.merge(state["trainable"], state["frozen"])
    return best, {"params": params, **state["model_state"]}
