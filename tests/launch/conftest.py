"""Stand-ins for the programs that launchers call."""

import pytest

from tests.launch.fakes import Fakes


@pytest.fixture
def fakes(tmp_path) -> Fakes:
    """An empty folder of them."""
    return Fakes(tmp_path)
