"""What the registry knows of a vision encoder."""

from dataclasses import dataclass
from functools import partial

from pixelrec_jax.items.vision.backbone import Backbone
from pixelrec_jax.system.options import Option, options_of
from pixelrec_jax.weights.mapping import WeightMapping


@dataclass(frozen=True)
class EncoderSpec:
    """How to build a backbone and where its published weights go.

    Attributes:
      backbone: its class with its sizes; called with the fields of `Backbone` and with the options
        that the class declares (`Option.field`).
      multiple: the image's sides must be multiples of it.
      pools: what `pool` may be; the first is the reference's (its REC/model/load.py).
      normalisation: that of the published weights, a key of `items.pixel.NORMALISATIONS`.
      mappings: names of published checkpoints; empty for encoders that start from random weights.
      head_init: of the projection, a key of `items.projection.KERNEL_INITS`.
      optional: blocks that a `pool` may leave out although checkpoints hold them.
    """

    backbone: partial[Backbone]
    multiple: int
    pools: tuple[str, ...]
    normalisation: str = "half"
    mappings: tuple[WeightMapping, ...] = ()
    head_init: str = "xavier_normal"
    optional: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Option]:
        """The options of a config that the backbone declares, by name."""
        made = self.backbone.func
        assert isinstance(made, type), "a backbone is made by its class"
        return options_of(made)
