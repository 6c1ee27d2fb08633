"""The folder of a run: resolved config, metrics (JSON lines, TensorBoard), result, top lists."""

import json
import os
import re
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from ml_collections import ConfigDict
from typing_extensions import TypedDict

from pixelrec_jax.configs.checks import changing, check_values
from pixelrec_jax.runs.writers import TensorBoard, open_trackers
from pixelrec_jax.system import storage
from pixelrec_jax.system.config import flatten
from pixelrec_jax.system.errors import UserError
from pixelrec_jax.system.files import check_folder, locked, replaced_file
from pixelrec_jax.system.redact import redacted
from pixelrec_jax.system.schema import Document, open_record

_PATTERN = re.compile(r"[*?[]")  # characters of patterns
_UPLOAD_EVERY = 60  # seconds between uploads of metrics; every checkpoint also uploads them


CONFIG = Document(
    "config.json",
    dict[str, Any],
    "the same config is in custom_metadata.run of the files "
    "{folder}/checkpoints/*/_CHECKPOINT_METADATA",
)


@open_record
class Record(TypedDict, extra_items=float):
    """A line of metrics.jsonl: the scalars of a step by name."""

    step: int


RECORD = Document("metrics.jsonl", Record, "remove this line, or the file, and start again")


def to_json(config: ConfigDict) -> dict:
    """Returns the config in JSON types (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))  # noqa: TID251 (not a file)


def storable(config: ConfigDict) -> dict:
    """Returns the config as a run keeps it, in JSON types.

    Its paths are absolute, so that another program finds them from any folder, and its addresses
    are without secrets.
    """
    stored = redacted(to_json(config))
    dataset, warm_start, item = stored["dataset"], stored["warm_start"], stored["item"]
    dataset["path"] = _absolute(dataset["path"])
    warm_start["run"] = _absolute(warm_start["run"])
    weights = item.get("weights", "")
    if weights and os.path.exists(storage.expand_user(weights)):  # otherwise not a local file
        item["weights"] = _absolute(weights)
    if "cache_dir" in item:
        item["cache_dir"] = _absolute(item["cache_dir"])
    return stored


def _agree(kept: Any, given: Any) -> bool:
    """Returns whether a value is the one that was kept; a file of weights may be gone since."""
    return kept == given or (isinstance(given, str) and kept == _absolute(given))


def _absolute(name: str) -> str:
    is_path = name and not storage.is_remote(name)
    return os.path.abspath(storage.expand_user(name)) if is_path else name


@contextmanager
def claim(workdir: Path, config: ConfigDict) -> Generator[None]:
    """Locks a workdir for the training of this config and writes the config into it.

    A folder without a checkpoint takes any config, since it holds no work yet.

    Raises:
      UserError: the path has a character of patterns, another process trains there, or the folder
        holds a run of another config; the message names the keys that differ.
    """
    _refuse_pattern(workdir)
    busy = f"another process is training in --workdir={workdir}; wait for it or give another"
    with locked(workdir, option="workdir", busy=busy):
        if any(path.name.isdigit() for path in (workdir / "checkpoints").glob("*")):
            check_same(workdir, config)
        CONFIG.write(workdir / CONFIG.name, storable(config))
        yield


def _refuse_pattern(workdir: Path) -> None:
    """Raises `UserError` for a path in which orbax would look for its arrays by a pattern.

    With [ its checkpoints lose all arrays, with * or ? they may get those of another run. What it
    wrote elsewhere can be read from such a path.
    """
    path = str(workdir if storage.is_remote(workdir) else workdir.absolute())
    if found := _PATTERN.search(path):
        raise UserError(
            f"--workdir={workdir}: checkpoints cannot be kept in a path with {found[0]!r}, here "
            f"{path!r}; give one without [, * and ?"
        )


def check_writable(workdir: Path) -> None:
    """Raises `UserError` if nothing can be written into a local workdir."""
    if storage.is_remote(workdir):
        return
    try:
        with TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}), but an evaluation writes "
            "its result there; change the permissions, or copy the run and give the copy"
        ) from None


def check_same(workdir: Path, config: ConfigDict) -> None:
    """Raises `UserError` if the workdir holds another config."""
    there, here = flatten(read_config(workdir).to_dict()), flatten(storable(config))
    changes = changing(config)
    differing = [
        f"{key}={there.get(key)!r} there, {here.get(key)!r} given"
        for key in sorted({**there, **here})
        if not _agree(there.get(key), here.get(key)) and changes.get(key, "result") == "result"
    ]
    if differing:
        shown = "; ".join(differing[:4]) + (" ..." if differing[4:] else "")
        raise UserError(
            f"--workdir={workdir} holds a run with another config ({shown}); give another workdir, "
            "or the same config to continue that run"
        )


def read_config(workdir: Path) -> ConfigDict:
    """Returns the config that a workdir holds.

    Raises:
      UserError: the folder is not a workdir, or holds something that is not a file.
    """
    path = workdir / CONFIG.name
    try:
        content = CONFIG.read(path)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"--workdir={workdir} holds no run (no config.json); give --config to start one, in a "
            "new folder if this one has checkpoints"
        ) from None
    try:
        config = ConfigDict(content)
        check_values(config)
    except (UserError, ValueError, AttributeError, KeyError, TypeError) as error:  # of its keys
        raise CONFIG.damaged(path, f"is not a config: {error}") from None
    if not storage.is_remote(workdir):
        try:
            check_folder(workdir)
        except OSError as error:
            raise UserError(
                f"--workdir={workdir}: {error.filename}: {error.strerror}; remove it"
            ) from None
    return config


class MetricsLog:
    """Writes scalars by step to metrics.jsonl and to all writers; use as a context manager.

    Attributes:
      kept: the last existing record of the steps that stay, {} if there is none.
      dropped: the last existing record of the steps that are repeated, {} if there is none.
    """

    def __init__(self, workdir: Path, *, continue_from: int, config: ConfigDict | None = None):
        """Opens the log and drops records after step `continue_from`, whose steps are repeated.

        `config.log.writers` names writers beside TensorBoard; without a config there are none.
        """
        self._workdir, self._folder = workdir, workdir
        self._spool: TemporaryDirectory | None = None
        self._flushed = time.monotonic()
        if storage.is_remote(workdir):  # objects there cannot be appended to
            self._spool = TemporaryDirectory()
            self._folder = Path(self._spool.name)
        self.kept, self.dropped, lines = {}, {}, []
        earlier = workdir / RECORD.name
        for line, record in RECORD.read_lines(earlier) if earlier.exists() else ():
            if record["step"] <= continue_from:
                lines.append(line)
                self.kept = record
            else:
                self.dropped = record
        path = self._folder / RECORD.name
        with replaced_file(path) as temporary:
            temporary.write_bytes(b"".join(lines))
        self._file = path.open("a", buffering=1)
        self._events = TensorBoard(self._folder / "tensorboard", continue_from=continue_from)
        self._writers = [self._events, *(open_trackers(workdir, config) if config else ())]

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        # On a full disk, closing also fails; it must not hide the error that ended the run.
        with suppress(OSError, UserError) if error else nullcontext():
            self._file.close()
            for writer in self._writers:
                writer.close(failed=error is not None)
            if self._spool:
                self._upload()
                self._spool.cleanup()

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Appends one record."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        for writer in self._writers:
            writer.write(step, scalars)
        if self._spool and time.monotonic() - self._flushed > _UPLOAD_EVERY:
            self.flush()

    def flush(self) -> None:
        """Uploads all records to object storage; does nothing for a local workdir."""
        if self._spool:
            self._events.flush()
            self._upload()

    def _upload(self) -> None:
        for source in sorted(self._folder.rglob("*")):
            if source.is_file():
                storage.upload(source, self._workdir / source.relative_to(self._folder))
        self._flushed = time.monotonic()
