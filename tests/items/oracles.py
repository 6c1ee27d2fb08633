"""Lets torchvision, timm and open_clip import where torchvision's compiled operators do not load.

The wheels on PyPI are built for CUDA. The operators are for object detection, which no test needs,
but the import looks for them.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

try:
    for _library in Path(find_spec("torchvision").origin).parent.glob("_C*.so"):
        torch.ops.load_library(_library)
    torch.ops.torchvision.nms  # noqa: B018 (raises AttributeError if it is not there)
except (OSError, AttributeError):
    _OPERATORS = torch.library.Library("torchvision", "DEF")  # undone when it is collected
    for _schema in _SCHEMAS:
        _OPERATORS.define(_schema)
