"""Random decisions by number: they do not depend on the place in a batch or on the device."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from pixelrec_jax.data.types import Array


def draw_kept(
    key: PRNGKeyArray, number: Int[Array, " M"], rate: float, shape: tuple[int, ...] = ()
) -> Bool[Array, "M ..."]:
    """Returns for each number what it keeps, each entry with a probability of 1 - rate.

    Args:
      key: all numbers share it.
      number: equal numbers have equal results.
      rate: probability that an entry is dropped.
      shape: the entries of each number.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, number)
    return jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, shape))(keys)


class RowDropout(nn.Module):
    """Dropout of the rows of a batch, each by its number.

    Attributes:
      rate: probability of dropping an entry; kept entries are scaled by 1 / (1 - rate).
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: Float[Array, "B ..."], row: Int[Array, " B"] | None
    ) -> Float[Array, "B ..."]:
        """Returns x with dropout; unchanged in evaluation, when there are no numbers of rows."""
        if row is None or self.rate == 0:
            return x
        kept = draw_kept(self.make_rng("dropout"), row, self.rate, x.shape[1:])
        return jnp.where(kept, x / (1 - self.rate), 0)
