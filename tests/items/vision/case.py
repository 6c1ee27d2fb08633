"""What a case of the comparison with PyTorch says."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pixelrec_jax.items.vision.backbone import Backbone
from pixelrec_jax.weights.mapping import WeightMapping
from tests.items.vision import parity


@dataclass(frozen=True)
class Case:
    """A PyTorch model and our encoder that computes the same.

    Attributes:
      make: makes the model.
      backbone, mapping: ours, and the names of its weights.
      blocks: names of PyTorch's modules, one for each of our blocks, with the same output.
      forward: (model, images) -> what the model returns.
      output: (what it returns, the last block's output) -> what our backbone returns.
      pools: by the name of a pool, the tokens of the last block -> what our backbone returns.
      size: side of the images in evaluation.
      train_size: side of those of a training step; 0 is the same.
      scale: of the random weights.
      seed: of the images of a training step.
    """

    make: Callable[[], torch.nn.Module]
    backbone: Backbone
    mapping: WeightMapping
    blocks: tuple[str, ...]
    forward: Callable = lambda module, image: module(image)
    output: Callable = lambda result, last: last
    pools: dict[str, Callable] = field(default_factory=dict)
    size: int = 32
    train_size: int = 0
    scale: float = 0.2
    seed: int = 1

    def module(self) -> torch.nn.Module:
        """Returns the model with random weights, in evaluation; MAE's positions are parameters."""
        return parity.randomise(self.make(), scale=self.scale).eval().requires_grad_(True)

    def run(self, module: torch.nn.Module, image: torch.Tensor) -> tuple[list, torch.Tensor]:
        """Returns PyTorch's outputs of the blocks and of the whole model."""
        states = []
        hooks = [
            module.get_submodule(block).register_forward_hook(
                lambda _module, _inputs, y: states.append(y[0] if isinstance(y, tuple) else y)
            )
            for block in self.blocks
        ]
        result = self.forward(module, image)
        for hook in hooks:
            hook.remove()
        return states, self.output(result, states[-1])


TOKENS = {"tokens": lambda x: x, "cls": lambda x: x[:, 0], "mean": lambda x: x[:, 1:].mean(1)}
MAP = {
    "tokens": lambda x: x.flatten(2).mT if x.ndim == 4 else x,
    "mean": lambda x: x.mean((2, 3)) if x.ndim == 4 else x.mean(1),
}


def numbered(first: str, pattern: str, count: int, *last: str) -> tuple[str, ...]:
    return (first, *(pattern.format(n) for n in range(count)), *last)
