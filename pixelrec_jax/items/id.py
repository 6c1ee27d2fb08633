"""IDNet: an item is a row of a trainable table."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixelrec_jax.data.types import Items


class IdEncoder(nn.Module):
    """Looks up item ids in a table.

    Attributes:
      num_items: N; row 0 is padding. As in the reference it is initialised like the other rows;
        no gradient reaches it from encoders that mask padding.
      width: D.
      init_std: standard deviation of the initial table.
    """

    num_items: int
    width: int
    init_std: float = 0.02

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> jax.Array:
        """Returns float32[M, D] for items.id int32[M]."""
        table = self.param(
            "table",
            nn.initializers.normal(self.init_std),
            (self.num_items, self.width),
            jnp.float32,
        )
        return table[items.id]
