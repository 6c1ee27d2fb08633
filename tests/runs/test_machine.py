"""run.json: what depends on the machine."""

import jax
import numpy
import pytest

from pixelrec_jax.runs.machine import RUN, write_machine_record
from tests import subprocesses
from tests.tiny import ROOT


def test_the_record_tells_time_devices_memory_and_versions(tmp_path):
    write_machine_record(tmp_path, 12.5)
    record = RUN.read(tmp_path / "run.json")
    assert record["seconds_per_epoch"] == 12.5
    assert record["devices"]["count"] == jax.device_count()
    assert record["processes"] == 1
    assert record["versions"]["jax"] == jax.__version__
    assert record["versions"]["numpy"] == numpy.__version__
    # More than one loaded JAX takes and less than any machine has: the unit is right.
    assert 2**26 < record["peak_memory"]["host"] < 2**44
    if (ROOT / ".git").exists():
        head = subprocesses.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], check=True)
        assert record["commit"].removesuffix("-dirty") == head.stdout.strip()
    else:  # a copy of the source
        assert record["commit"] is None


def test_a_mere_evaluation_leaves_the_record_of_the_training(tmp_path):
    for seconds, expected in ((None, None), (3.0, 3.0), (None, 3.0), (4.0, 4.0)):
        write_machine_record(tmp_path, seconds)
        record = RUN.read(tmp_path / "run.json")
        assert record["seconds_per_epoch"] == expected


@pytest.mark.parametrize("peaks", [[5, 7], [5, None], [None, None]])
def test_the_peak_of_devices_is_the_largest_that_they_tell(peaks, monkeypatch, tmp_path):
    class Device:
        platform, device_kind = "gpu", "H"

        def __init__(self, peak):
            self._peak = peak

        def memory_stats(self):
            return None if self._peak is None else {"peak_bytes_in_use": self._peak}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device(peak) for peak in peaks])
    write_machine_record(tmp_path)
    record = RUN.read(tmp_path / "run.json")
    assert record["peak_memory"]["device"] == max((x for x in peaks if x), default=None)
