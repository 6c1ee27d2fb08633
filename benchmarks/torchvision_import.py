"""Lets torchvision, timm and open_clip import where torchvision's compiled operators do not load.

The wheels on PyPI are built for CUDA. The operators are for object detection, which nothing here
needs, but the import looks for them.
"""

from importlib.metadata import distribution
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

try:
    _folder = Path(str(distribution("torchvision").locate_file("torchvision")))
    for _library in _folder.glob("_C*.so"):
        torch.ops.load_library(_library)
    torch.ops.torchvision.nms  # noqa: B018 (raises AttributeError if it is not there)
except (OSError, AttributeError):
    _OPERATORS = torch.library.Library("torchvision", "DEF")  # undone when it is collected
    for _schema in _SCHEMAS:
        _OPERATORS.define(_schema)
