"""IDNet: an item is a row of a trainable table."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pixelrec_jax.data.types import PAD, Array, Items
from pixelrec_jax.initializers import symmetric_uniform
from pixelrec_jax.items.encoder import ItemEncoder
from pixelrec_jax.parallel.tables import embedding_lookup

# How tables [N, D] start in the reference's recommenders; only "normal" reads the deviation.
TABLE_INITS: dict[str, Callable[[int, int, float], nn.initializers.Initializer]] = {
    "normal": lambda items, width, std: nn.initializers.normal(std),
    "xavier_normal": lambda items, width, std: nn.initializers.xavier_normal(),
    "kaiming_normal": lambda items, width, std: nn.initializers.normal((2 / width) ** 0.5),
    "uniform_items": lambda items, width, std: symmetric_uniform(items**-0.5),
    "uniform_width": lambda items, width, std: symmetric_uniform(width**-0.5),
}


class IdEncoder(ItemEncoder):
    """Looks up item ids in a table.

    Attributes:
      num_items: N; row 0 is padding. As in the reference it is initialised like the other rows
        and gets no gradient, even from user encoders that read it.
      width: D.
      table_init: a key of `TABLE_INITS`.
      init_std: deviation of "normal".
    """

    num_items: int
    width: int
    table_init: str = "normal"
    init_std: float = 0.02

    @property
    def id_table(self) -> tuple[str, ...]:
        """See `ItemEncoder`."""
        return ("table",)

    @nn.compact
    def __call__(self, items: Items, *, train: bool) -> Float[Array, "M {self.width}"]:
        """Returns the items' rows of the table, float32."""
        shape = (self.num_items, self.width)
        initializer = TABLE_INITS[self.table_init](*shape, self.init_std)
        vector = embedding_lookup(self, "table", initializer, shape, items.id)
        return jnp.where((items.id == PAD)[:, None], jax.lax.stop_gradient(vector), vector)
