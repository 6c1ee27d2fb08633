"""What the registry knows of a vision encoder."""

from collections.abc import Callable
from dataclasses import dataclass

import flax.linen as nn

from pixelrec_jax.weights.mapping import WeightMapping


@dataclass(frozen=True)
class EncoderSpec:
    """How to build a backbone and where its published weights go.

    A backbone is a module with `blocks` (names of its parts from pixels to vector, the unit of
    freezing) that is called as backbone(image float[M, H, W, 3], context) and returns tokens
    float[M, S, C] if `pool` is "tokens" and vectors float[M, C] otherwise.

    Attributes:
      backbone: makes the module from keyword arguments: `pool`;
        `train_mode_blocks`, the blocks that are in train
        mode when the context is; `remat`, to recompute blocks in the backward pass instead of
        keeping their activations; `dtype` of computation; and options of its own.
      multiple: the image's sides must be multiples of it.
      pools: what `pool` may be; the first is the reference's (its REC/model/load.py).
      normalisation: that of the published weights, a key of `items.pixel.NORMALISATIONS`.
      mappings: names of published checkpoints; empty for encoders that start from random weights.
      head_init: of the projection, a key of `items.projection.KERNEL_INITS`.
      optional: blocks that a `pool` may leave out although checkpoints hold them.
    """

    backbone: Callable[..., nn.Module]
    multiple: int
    pools: tuple[str, ...]
    normalisation: str = "half"
    mappings: tuple[WeightMapping, ...] = ()
    head_init: str = "xavier_normal"
    optional: tuple[str, ...] = ()
