"""The limits under which readers are tried."""

import signal

import pytest
from PIL import Image

from pixelrec_jax.ingest.sources import source
from tests.fuzz.bounds import LARGEST, PIXELS, stop


@pytest.fixture
def bounded(monkeypatch):
    """Lower limits, so that what is beyond them can be seen, and an end to waiting."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS)
    monkeypatch.setattr(source, "LARGEST", LARGEST)
    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
