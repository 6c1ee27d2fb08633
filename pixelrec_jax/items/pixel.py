"""PixelNet: an item is its image, seen by a trainable vision encoder (PixelRec section 3)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from pixelrec_jax.data.types import PAD, Array, Items
from pixelrec_jax.items.encoder import ItemEncoder
from pixelrec_jax.items.projection import project
from pixelrec_jax.items.vision.backbone import Backbone
from pixelrec_jax.items.vision.layers import Context

# Mean and standard deviation of the channels of pixels in [0, 1].
NORMALISATIONS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # the reference's, for all encoders
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


class PixelEncoder(ItemEncoder):
    """Normalises the image, runs the backbone and projects to the width of the recommender.

    Attributes:
      backbone: maps images to tokens or vectors.
      trainable_blocks: the backbone's blocks that are trained.
      mask_item: the id of the mask item, if there is one; its image is white.
      width: D.
      dnn_layers: widths of further dense layers with ReLU below the projection (Figure 10).
      head_init: how the projection starts, a key of `KERNEL_INITS`.
      normalisation: a key of `NORMALISATIONS`.
      dtype: of computation.
    """

    backbone: Backbone
    trainable_blocks: tuple[str, ...]
    mask_item: int | None
    width: int
    dnn_layers: tuple[int, ...] = ()
    head_init: str = "xavier_normal"
    normalisation: str = "half"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> Float[Array, "M {self.width}"]:
        """Returns the items' vectors, float32."""
        context = Context(train=train, item=items.id, weight=items.weight)
        if items.activation is None:
            x = self.backbone(self.normalise(items), context)
        else:
            x = items.activation.astype(self.dtype)
            x = self.backbone.run(x, start=self.boundary, context=context)
        widths = (*self.dnn_layers, self.width)
        return project(x, widths, init=self.head_init, dtype=self.dtype)

    @property
    def boundary(self) -> int:
        """The place of the first trained step of the backbone; its input does not change."""
        names = self.backbone.step_names
        trained = (n for n, name in enumerate(names) if name in self.trainable_blocks)
        return next(trained, len(names))

    def normalise(self, items: Items) -> Float[Array, "M H W 3"]:
        """Returns the images as the backbone takes them, of `dtype`."""
        assert items.image is not None, "a store of images fills the items of this encoder"
        mean, std = jnp.asarray(NORMALISATIONS[self.normalisation])[:, None, None, None]
        image = (items.image.astype(jnp.float32) / 255 - mean) / std
        # The reference's padding image is zero after normalisation; uint8 pixels cannot be that.
        image = jnp.where((items.id == PAD)[:, None, None, None], 0, image)
        if self.mask_item is not None:  # likewise ones after normalisation
            image = jnp.where((items.id == self.mask_item)[:, None, None, None], 1, image)
        return image.astype(self.dtype)

    def run_backbone(self, items: Items, stop: int | str | None = None) -> Float[Array, "M *map C"]:
        """Returns the input of step `stop` of the backbone, in evaluation; see `Backbone.run`."""
        return self.backbone.run(self.normalise(items), stop=stop)
