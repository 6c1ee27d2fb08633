"""PixelNet: an item is its image, seen by a trainable vision encoder (PixelRec section 3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixelrec_jax.data.types import PAD, Items


class PixelEncoder(nn.Module):
    """Normalises the image, runs the trunk and projects to the width of the recommender.

    The projection is the paper's dimension transformation layer. It has a ReLU, as the reference
    code has, so item vectors are non-negative.

    Attributes:
      trunk: maps float[M, H, W, 3] to tokens float[M, S, C].
      width: D.
      mean, std: normalisation of pixels in [0, 1]; 0.5 and 0.5 in the reference.
    """

    trunk: nn.Module
    width: int
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> jax.Array:
        """Returns float32[M, D] for items.id int32[M] and items.image uint8[M, H, W, 3]."""
        image = items.image.astype(jnp.float32) / 255
        image = (image - jnp.asarray(self.mean)) / jnp.asarray(self.std)
        # The reference's padding image is all zeros after normalisation, which uint8 cannot say.
        image = jnp.where((items.id == PAD)[:, None, None, None], 0, image)
        tokens = self.trunk(image.astype(self.dtype), train=train)  # [M, S, C]
        projected = nn.Dense(
            self.width,
            kernel_init=nn.initializers.xavier_normal(),
            dtype=self.dtype,
            name="head",
        )(tokens)
        return jnp.mean(nn.relu(projected).astype(jnp.float32), axis=-2)
