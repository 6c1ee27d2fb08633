"""What item encoders have in common."""

import flax.linen as nn
from jaxtyping import Float

from pixelrec_jax.data.types import Array, Items


class ItemEncoder(nn.Module):
    """Maps `Items` with one leading axis M to their vectors."""

    @property
    def id_table(self) -> tuple[str, ...] | None:
        """The path of a table with a row for every item, which `embedding_lookup` reads, if any."""
        return None

    def __call__(self, items: Items, *, train: bool) -> Float[Array, "M E"]:
        """Returns the vectors, float32."""
        raise NotImplementedError
