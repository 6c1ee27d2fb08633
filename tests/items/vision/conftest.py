"""Makes PyTorch's libraries of models importable before any test imports them."""

from benchmarks import torchvision_import  # noqa: F401
