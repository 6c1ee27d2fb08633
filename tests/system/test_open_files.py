"""Few files that may be open: images are read all the same, and the limit is told as one."""

import resource
import sys

import numpy as np
import pytest

from pixelrec_jax.data.images import ImageStore
from pixelrec_jax.system import faults
from pixelrec_jax.system.open_files import most_open
from tests import subprocesses
from tests.tiny import ROOT

INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "expected", "raised"),
    [
        (256, INFINITE, 256, 1024),  # a Mac
        (1024, 4096, 256, None),
        (60, 60, 15, None),
        (60, 100, 25, 100),
        (2, 2, 1, None),
        (INFINITE, INFINITE, 256, None),
    ],
)
def test_a_quarter_of_the_limit_is_taken_after_it_was_raised(
    monkeypatch, soft, hard, expected, raised
):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    assert most_open(256) == expected
    assert [new for new, _ in limits if new != soft] == ([raised] if raised else [])


def test_more_shards_than_files_that_may_be_open_are_read(tmp_path):
    program = f"""
import resource, sys
import numpy as np
from pathlib import Path
from pixelrec_jax.data import images
from pixelrec_jax.ingest import image_shards, toy
from pixelrec_jax.ingest.prepare import prepare
for module in (images, image_shards):
    module.RECORDS_PER_SHARD = 1
raw, out = Path({str(tmp_path / "raw")!r}), Path({str(tmp_path / "out")!r})
toy.generate(raw, seed=0, users=60, items=100, image_size=16)
prepare(raw / "interactions.csv", raw / "images", out)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
store = images.ImageStore(out, size=16)
assert store.load(np.arange(1, store.num_items + 1)).any()
"""
    subprocesses.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_too_many_open_files_are_not_damage(toy_dataset, monkeypatch):
    store = ImageStore(toy_dataset, size=16)

    class Reader:
        def read(self, _):
            raise RuntimeError("open() failed: Too many open files; opening 00000.array_record")

    monkeypatch.setattr(store, "_open", lambda _: Reader())
    with pytest.raises(RuntimeError) as raised:
        store.load(np.array([1]))
    message, code = faults.ending(raised.value)
    assert "Too many open files; allow more open files with ulimit -n" in message
    assert code == 2
