"""What JAX needs before its first use: a cache of compiled programs, and a silent TPU compiler."""

import hashlib
import os
import platform
import shutil
import warnings
from contextlib import suppress
from pathlib import Path

from pixelrec_jax.system import storage

_CACHE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own setting, which wins
_SHORTEST = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"
_SECONDS = 0.1  # programs that compile faster are not kept
_BYTES = 2**30  # kept in one folder; what was not used for longest goes first
_FOLDERS = 3  # of other processors and versions, kept beside that of this one
_PROCESSOR = (
    *("vendor_id", "cpu family", "model", "model name", "flags"),  # x86
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),  # Arm
)


def start_jax(workdir: Path | None = None) -> None:
    """Starts JAX's devices; compiled programs are kept from now on, so that a restart is quick.

    They are kept in the user's cache, or in `workdir` if that is on gs:// and the devices are not
    CPUs, since the disks of such machines are often lost. JAX_COMPILATION_CACHE_DIR names another
    folder, and none if it is empty; a folder that the calling program has set stays as well. A
    folder that cannot be written is not used.
    """
    import jax

    quiet_libtpu()
    on_cpu = jax.default_backend() == "cpu"
    if _CACHE in os.environ or jax.config.values["jax_compilation_cache_dir"]:
        return
    if workdir is not None and storage.is_remote(workdir) and not on_cpu:
        # Without a bound: a run has few programs, and JAX cannot lock gs://.
        folder, most = f"{workdir}/compiled", -1
    else:
        here = storage.cache() / "compiled" / _name(on_cpu=on_cpu)
        if not _claim(here):
            return
        folder, most = str(here), _BYTES
    # A run is right without the cache: what cannot be read or kept is compiled, without a warning.
    warnings.filterwarnings("ignore", r"Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_compilation_cache_max_size", most)
    if _SHORTEST not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)


def quiet_libtpu() -> None:
    """Keeps libtpu from complaining where there are no TPUs; for after JAX's import, before use."""
    # JAX sets this when it is imported on a machine without TPU chips. Without the others, libtpu
    # looks for what a TPU VM knows of itself, and writes that it finds nothing.
    if os.environ.get("TPU_SKIP_MDS_QUERY") == "1":
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")  # any that libtpu knows


def _name(*, on_cpu: bool) -> str:
    """Returns the name of the folder; programs for a CPU can crash on another processor."""
    import jax
    import jaxlib

    device = f"cpu-{_processor()}" if on_cpu else jax.default_backend()
    return f"{device}-jax-{jax.__version__}-jaxlib-{jaxlib.__version__}"


def _processor() -> str:
    """Returns a digest of the model and the features of the processor."""
    known = [platform.machine(), platform.processor()]
    with suppress(OSError):  # only Linux has this file
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        known += [x for x in first.splitlines() if x.partition(":")[0].strip() in _PROCESSOR]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]


def _claim(folder: Path) -> bool:
    """Makes a folder the latest and deletes old ones beside it; returns whether it is writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        if not os.access(folder, os.W_OK):
            return False
        others = [path for path in folder.parent.iterdir() if path.is_dir() and path != folder]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    except OSError:
        return False
    for path in others[_FOLDERS:]:
        shutil.rmtree(path, ignore_errors=True)
    return True
