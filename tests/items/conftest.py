"""Makes PyTorch's libraries of models importable before any test imports them."""

from tests.items import oracles  # noqa: F401
