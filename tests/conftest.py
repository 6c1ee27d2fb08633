"""Eight virtual devices for the whole test process, and the little datasets tests train on."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

if "device_count" not in (xla_flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{xla_flags} --xla_force_host_platform_device_count=8".lstrip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a network
ROOT = Path(__file__).parent.parent
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"  # also in programs that tests start
# Small programs are kept as well: a test compiles, and a process that it starts, many of them.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402  (after the environment is set)
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests.checker import PACKAGES  # noqa: E402

install_import_hook(PACKAGES, "tests.checker.checked")  # before they are imported

from pixelrec_jax.ingest import toy  # noqa: E402
from pixelrec_jax.ingest.prepare import prepare  # noqa: E402
from tests import double, subprocesses  # noqa: E402
from tests.prepared import HEADER, ROWS, draw, lines  # noqa: E402


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, then those with many: no process is left with one alone."""
    count = Counter(item.path for item in items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, -count[item.path]))


@pytest.fixture(autouse=True, scope="session")
def _parsed_flags():
    # grain reads absl flags, which a test runner never parses.
    flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True, scope="session")
def _programs_without_torch(tmp_path_factory):
    """TensorBoardX imports PyTorch where it is: two seconds for each program that a test starts."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text("import sys\nsys.modules['torch'] = None\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        yield


@pytest.fixture
def in_float64(monkeypatch):
    """The program computes in float64 what it computes in float32; see `tests.double`."""
    double.compute_in_float64(monkeypatch)
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory) -> Path:
    """A prepared toy catalogue: 60 users, 100 items, covers of 16 pixels."""
    folder = tmp_path_factory.mktemp("toy")
    toy.generate(folder / "raw", seed=0, users=60, items=100, image_size=16)
    prepare(folder / "raw" / "interactions.csv", folder / "raw" / "images", folder / "prepared")
    return folder / "prepared"


@pytest.fixture
def place(tmp_path):
    """A folder with x.csv (ROWS) and images/ of the items a, c, d, e."""
    (tmp_path / "x.csv").write_text(HEADER + lines(ROWS))
    for number, item_id in enumerate("acde"):
        draw(tmp_path / "images", item_id, (60 * number, 0, 0))
    return tmp_path


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this package, built from a copy of its source."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for part in ("configs", "launch", "pixelrec_jax"):
        shutil.copytree(ROOT / part, source / part, ignore=ignored)
    for file in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    options = ("--no-deps", "--no-build-isolation", f"--wheel-dir={folder}")
    subprocesses.run([*pip, "wheel", *options, str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder into which the wheel is installed; programs find it as PYTHONPATH."""
    target = tmp_path_factory.mktemp("installed")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    options = ("--no-deps", "--no-index", f"--target={target}")
    subprocesses.run([*pip, "install", *options, str(wheel)], check=True)
    return target
