"""Both formats of PyTorch's files."""

import pytest

from tests.weights.pickles import FORMATS


@pytest.fixture(params=FORMATS)
def form(request):
    return request.param
