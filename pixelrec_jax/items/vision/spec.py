"""The registry's entry for a vision encoder."""

from dataclasses import dataclass
from functools import partial

from pixelrec_jax.items.vision.backbone import Backbone
from pixelrec_jax.system.options import Option, options_of
from pixelrec_jax.weights.mapping import WeightMapping


@dataclass(frozen=True)
class EncoderSpec:
    """How to build a backbone and read its published weights.

    Attributes:
      backbone: its class with its sizes; called with the fields of `Backbone` and with the options
        that the class declares (`Option.field`).
      multiple: the image's sides are multiples of this number of pixels.
      pools: the values that `pool` may have; the first is the reference's (REC/model/load.py).
      normalisation: that of the published weights, a key of `items.pixel.NORMALISATIONS`.
      mappings: one for each form of published weights; empty if there are none.
      head_init: how the projection starts, a key of `items.projection.KERNEL_INITS`.
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
        """The options that the backbone declares, by name."""
        made = self.backbone.func
        assert isinstance(made, type), "a backbone is made by its class"
        return options_of(made)
