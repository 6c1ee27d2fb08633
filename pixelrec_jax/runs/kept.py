"""The folders of checkpoints: which ones count, what their metadata say, and which are removed."""

import json
import os
import shutil
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import jax
from pydantic import Field
from typing_extensions import TypedDict

from pixelrec_jax.parallel.distributed import wait_for_all
from pixelrec_jax.runs.stored import COMMITTED, INCOMPLETE, METADATA, damage, raise_explained
from pixelrec_jax.system import storage
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import read_text
from pixelrec_jax.system.schema import Document, Finite, Sha256, record

_LATEST = 2  # checkpoints that are kept beside the best one


class DamagedError(UserError):
    """A checkpoint does not hold what was saved.

    Attributes:
      reason: what is wrong with it.
    """

    def __init__(self, message: str, reason: str):
        """Takes the whole message, and the part of it that says what is wrong."""
        super().__init__(message)
        self.reason = reason


@record
class Metadata(TypedDict):
    """What a checkpoint keeps beside its arrays.

    Attributes:
      run: what the run needs to continue.
      metrics: of the evaluation at this step; None without one.
      digests: of each array, by its path (`digest.digests`).
      sha256: of all that stands above, as JSON.
    """

    run: dict[str, Any]
    metrics: dict[str, Finite] | None
    digests: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]]
    sha256: Sha256


_DOCUMENT = Document(METADATA, Metadata, "it is not as it was written")


def build_metadata(run: dict, metrics: dict | None, digests: dict[str, str]) -> Metadata:
    """Returns the metadata of a checkpoint with their own digest."""
    content: Any = {"run": run, "metrics": metrics, "digests": digests}
    return {**content, "sha256": _sha256(content)}


def _sha256(metadata: Any) -> str:
    content = {name: value for name, value in metadata.items() if name != "sha256"}
    return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Kept:
    """The checkpoints of a directory that count: complete, read back, and not known as damaged.

    Attributes:
      directory: where they are, each in a folder named by its step.
    """

    def __init__(self, directory: Path, steps: Sequence[int], *, metric: str):
        """Takes the steps of all complete ones; `metric` decides which is the best, higher wins."""
        self.directory, self._metric = directory, metric
        self._steps = [step for step in sorted(steps) if not self._is_marked(step)]
        # By step, without damaged ones. They are read at once: later process 0 deletes some.
        self._metadata: dict[int, Metadata] = {}
        for step in self._steps:
            with suppress(OSError, ValueError, LookupError, TypeError):  # `metadata` tells it
                self._read_metadata(step)

    @property
    def steps(self) -> list[int]:
        """Their steps, the newest first."""
        return self._steps[::-1]

    @property
    def best(self) -> int | None:
        """The step with the best metric, the latest of equals; None if none was evaluated.

        Raises:
          DamagedError: the metadata of one cannot be read, so that it may be the best.
        """
        for step in self._steps:
            self.metadata(step)
        return self._best(self._steps)

    def _best(self, steps: Iterable[int]) -> int | None:
        """Returns the best of these steps, as far as their metadata are known."""
        known = {step: self._metadata[step]["metrics"] for step in steps if step in self._metadata}
        scores = [(metrics[self._metric], step) for step, metrics in known.items() if metrics]
        return max(scores)[1] if scores else None

    def folder(self, step: int) -> Path:
        """Returns the folder of a checkpoint."""
        return self.directory / str(step)

    def metadata(self, step: int) -> Metadata:
        """Returns the metadata of a checkpoint.

        Raises:
          DamagedError: the file is not there, or its content does not have its own digest.
        """
        with self.reading(step):
            return self._read_metadata(step)

    def _read_metadata(self, step: int) -> Metadata:
        if step not in self._metadata:
            path = self.folder(step) / METADATA
            content = json.loads(read_text(path))["custom_metadata"]
            try:
                metadata = _DOCUMENT.check(content, path)
            except UserError as error:
                raise ValueError(str(error)) from None
            if metadata["sha256"] != _sha256(content):  # a schema may turn 1 into 1.0
                raise ValueError(f"{METADATA} is not what was saved")
            self._metadata[step] = metadata
        return self._metadata[step]

    def add(self, step: int, metadata: Metadata) -> None:
        """Makes a checkpoint count; those that are neither among the latest nor the best go."""
        self._steps.append(step)
        self._metadata[step] = metadata
        unknown = [step for step in self._steps if step not in self._metadata]  # may be the best
        kept = {*self._steps[-_LATEST:], self._best(self._steps), *unknown}
        for old in [step for step in self._steps if step not in kept]:
            self._steps.remove(old)
            self._metadata.pop(old)
            if jax.process_index() == 0:
                self._delete(old)

    def _delete(self, step: int) -> None:
        """Deletes a folder; if that is interrupted, orbax removes the rest at the next start."""
        folder = self.folder(step)
        try:
            if storage.is_remote(folder):
                (folder / COMMITTED).unlink()
                storage.remove(folder)
            else:
                shutil.rmtree(folder.rename(folder.with_name(f"{step}{INCOMPLETE}")))
        except OSError as error:
            raise_explained(f"{folder} cannot be deleted", error, folder)

    def set_aside(self, step: int) -> str:
        """Puts a damaged checkpoint out of the way and returns what was done; collective.

        On a local disk its folder is renamed; on object storage, which would copy all files, an
        object beside it marks it. Where neither can be done, it does not count in this run.
        """
        self._steps.remove(step)
        self._metadata.pop(step, None)
        done = ""
        if jax.process_index() == 0:
            try:
                done = self._mark_or_move(step)
            except OSError as error:
                done = f"it stays where it is, as it cannot be moved ({error.strerror or error})"
        wait_for_all("set aside")
        return done

    def _mark_or_move(self, step: int) -> str:
        if storage.is_remote(self.directory):
            self._mark(step).write_text("damaged\n")
            return f"{self._mark(step)} marks it"
        taken = set(os.listdir(self.directory))
        names = [f"{step}.damaged", *(f"{step}.damaged-{n}" for n in range(2, 2 + len(taken)))]
        name = next(name for name in names if name not in taken)
        return f"it is now {self.folder(step).rename(self.directory / name)}"

    def _mark(self, step: int) -> Path:
        return self.directory / f"{step}.damaged"

    def _is_marked(self, step: int) -> bool:
        return storage.is_remote(self.directory) and self._mark(step).exists()

    def unmark(self, step: int) -> None:
        """Removes the mark of a damaged checkpoint that another one has replaced."""
        if jax.process_index() == 0 and self._is_marked(step):
            self._mark(step).unlink()

    @contextmanager
    def reading(self, step: int) -> Generator[None]:
        """Tells damage of a checkpoint apart from other reasons why it cannot be read."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            if (reason := damage(error)) is not None:
                raise self.damaged(step, reason) from error
            folder = self.folder(step)
            raise_explained(f"the checkpoint {folder} cannot be read", error, folder)

    def damaged(self, step: int, reason: str) -> DamagedError:
        """Returns the error for a damaged checkpoint; it says how to go on without it."""
        remedy = "train in a new workdir, as no other was evaluated"
        if (best := self._best(other for other in self._steps if other != step)) is not None:
            way = "write an object" if storage.is_remote(self.directory) else "rename it to"
            remedy = f"to use the next best, of step {best}, {way} {self._mark(step)}"
        return DamagedError(
            f"the checkpoint {self.folder(step)} is damaged or incomplete ({reason}); {remedy}",
            reason,
        )
