"""Self-attention with a learned bias per relative position, as in Swin and BEiT."""

from functools import partial
from math import isqrt

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.layers import split_heads


class RelativeAttention(nn.Module):
    """Multi-head self-attention within square windows (Liu et al. 2021, arXiv 2103.14030).

    A learned bias is added to each logit. It depends on the head and on the rows and columns
    between query and key, and stays float32.

    Attributes:
      heads: attention heads.
      side: side of the largest window; the table has a row for each of its (2 side - 1)^2 offsets.
      class_token: whether each window starts with a class token. It has no position: the table's
        last three rows are its bias as a query, as a key, and to itself (Bao et al. 2022).
      key_bias: whether the projection to keys has a bias.
      dtype: of computation.
    """

    heads: int
    side: int
    class_token: bool
    key_bias: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "M W S C"], mask: Float[np.ndarray, "W 1 S S"] | None = None
    ) -> Float[Array, "M W S C"]:
        """Returns the output for M images of W windows; `mask` is added to the logits."""
        width = x.shape[-1]
        index = _offsets(isqrt(x.shape[2] - self.class_token), self.side, self.class_token)
        shape = ((2 * self.side - 1) ** 2 + 3 * self.class_token, self.heads)
        table = self.param("relative", nn.initializers.normal(0.02), shape, jnp.float32)
        bias = table[index].transpose(2, 0, 1)[None]  # [1, heads, S, S]
        bias = bias if mask is None else bias + mask

        def project(name: str, *, use_bias: bool = True) -> Float[Array, "M W S heads width"]:
            y = nn.Dense(width, use_bias=use_bias, dtype=self.dtype, name=name)(x)
            return split_heads(y, self.heads)

        query, value = project("query"), project("value")
        key = project("key", use_bias=self.key_bias)
        attend = jax.vmap(partial(jax.nn.dot_product_attention, bias=bias))
        context = attend(query, key, value).reshape(x.shape)
        return nn.Dense(width, dtype=self.dtype, name="out")(context)


def _offsets(side: int, table: int, class_token: bool) -> Int[np.ndarray, "S S"]:
    """Returns the row in a table for windows of side `table`, for each query and key."""
    place = np.stack(np.divmod(np.arange(side * side), side))
    row, column = place[:, :, None] - place[:, None] + table - 1
    rows = (2 * table - 1) ** 2
    index = row * (2 * table - 1) + column
    if class_token:
        index = np.pad(index, ((1, 0), (1, 0)))
        index[0], index[:, 0], index[0, 0] = rows, rows + 1, rows + 2
    return index
