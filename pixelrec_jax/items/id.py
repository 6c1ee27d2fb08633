"""IDNet: an item is a row of a trainable table."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixelrec_jax.data.types import PAD, Items
from pixelrec_jax.initializers import symmetric_uniform


class IdEncoder(nn.Module):
    """Looks up item ids in a table.

    Attributes:
      num_items: N; row 0 is padding. As in the reference it is initialised like the other rows
        and gets no gradient, even from user encoders that see it.
      width: D.
      init: how the table starts: "normal" with deviation `init_std`, "xavier_normal",
        "kaiming_normal" over D, or uniform up to 1 / sqrt(N) ("uniform_items") or 1 / sqrt(D)
        ("uniform_width"), as the reference's recommenders have it.
    """

    num_items: int
    width: int
    init: Literal["normal", "xavier_normal", "kaiming_normal", "uniform_items", "uniform_width"] = (
        "normal"
    )
    init_std: float = 0.02

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> jax.Array:
        """Returns float32[..., D] for items.id int32[...]."""
        shape = (self.num_items, self.width)
        initializer = {
            "normal": nn.initializers.normal(self.init_std),
            "xavier_normal": nn.initializers.xavier_normal(),
            "kaiming_normal": nn.initializers.normal((2 / self.width) ** 0.5),
            "uniform_items": symmetric_uniform(self.num_items**-0.5),
            "uniform_width": symmetric_uniform(self.width**-0.5),
        }[self.init]
        vector = self.param("table", initializer, shape, jnp.float32)[items.id]
        return jnp.where((items.id == PAD)[..., None], jax.lax.stop_gradient(vector), vector)
