"""The record of the machine that a run was on, which is separate from its result."""

import platform
from importlib import metadata
from pathlib import Path

import jax
from typing_extensions import TypedDict

import pixelrec_jax
from pixelrec_jax.system.machine import code_commit, peak_of_devices, peak_of_host
from pixelrec_jax.system.schema import Count, Document, record

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
_ROOT = Path(pixelrec_jax.__file__).resolve().parent.parent


@record
class Devices(TypedDict):
    """The devices of a run, in all processes."""

    platform: str
    kind: str
    count: Count


@record
class PeakMemory(TypedDict):
    """The largest memory in bytes: of this process, and of a device if devices report it."""

    host: Count
    device: Count | None


@record
class MachineRecord(TypedDict):
    """What depends on the machine; the content of run.json also has the time.

    `commit` is None if the code is not a git clone, and ends in "-dirty" if files were changed.
    """

    devices: Devices
    processes: Count
    peak_memory: PeakMemory
    versions: dict[str, str]
    commit: str | None


@record
class RunRecord(MachineRecord):
    """The content of run.json; the time is None if nothing was trained."""

    seconds_per_epoch: float | None


RUN = Document("run.json", RunRecord, "remove it and train or evaluate the run again")


def write_machine_record(workdir: Path, seconds_per_epoch: float | None = None) -> None:
    """Writes run.json: `machine_record` and the training seconds of an epoch.

    Without a time, when a finished run is only evaluated again, an existing file stays.
    """
    path = workdir / RUN.name
    if seconds_per_epoch is None and path.exists():
        return
    RUN.write(path, {"seconds_per_epoch": seconds_per_epoch, **machine_record()})


def machine_record() -> MachineRecord:
    """Returns the record of this process and its devices."""
    device = jax.local_devices()[0]
    return {
        "devices": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
        },
        "processes": jax.process_count(),
        "peak_memory": {"host": peak_of_host(), "device": peak_of_devices()},
        "versions": {
            "python": platform.python_version(),
            "pixelrec_jax": pixelrec_jax.__version__,
            **{name: metadata.version(name) for name in _PACKAGES},
        },
        "commit": code_commit(_ROOT),
    }
