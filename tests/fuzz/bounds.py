"""How a reader is tried: with what examples, for how long, and within how much memory."""

import os
import shutil
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings

from pixelrec_jax.system.errors import UserError
from tests.fuzz.measure import at_most

MORE = int(os.environ.get("PIXELREC_FUZZ", "0"))
SECONDS = 20  # for one file of some kilobytes
PIXELS = 2**20  # of an image; in the place of Pillow's limit, so that the memory can be seen
LARGEST = 2**22  # bytes of a file in an archive, in the place of the limit of `source`
SLACK = 96 * 2**20  # what libraries take for any file: threads of polars, caches


def check_line(error: Exception, folder: Path | None = None) -> None:
    """Asserts that a message is one short line, which names the file or the option to change."""
    assert str(error).isprintable()
    assert len(str(error)) <= 3000
    assert folder is None or str(folder) in str(error) or "--" in str(error)


def stop(*_):
    raise TimeoutError(f"reading took more than {SECONDS} seconds")


def run(
    read: Callable[[Path, Path], object],
    folder: Path,
    content: bytes,
    *,
    most: int,
    alone: bool = False,
) -> None:
    """Reads one file, which must end in a result or in one line that names it.

    With `alone` the reader does not know where the file comes from; its line is a `ValueError`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "x"
    path.write_bytes(content)
    signal.alarm(SECONDS)
    try:
        with at_most(most), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder, path)
    except UserError as error:
        check_line(error, folder)
    except ValueError as error:
        if not alone:
            raise
        check_line(error)
    finally:
        signal.alarm(0)


def tried(count: int) -> settings:
    return settings(
        max_examples=MORE or count,
        derandomize=not MORE,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if MORE else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
