"""What user encoders have in common."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from pixelrec_jax.data.types import History


class UserEncoder(nn.Module):
    """Maps a `History` to states float32[B, S, D], S = L or 1; the last one is the user now.

    Training scores the last T states against the T targets of a row, ranking uses the last state.

    Attributes:
      num_users: number of users, with the padding user 0; for those who keep a table of users.
      dtype: of computation.
    """

    num_users: int
    dtype: jnp.dtype

    def __call__(self, history: History, *, train: bool) -> jax.Array:
        """Returns the states."""
        raise NotImplementedError


def visible_vectors(history: History, *, show_padding: bool) -> jax.Array:
    """Returns float32[B, L, D]: zeros at padding, unless padding is to be seen.

    The reference shows some encoders what the item table holds for padding, which is random, or how
    the encoder sees a grey image.
    """
    if show_padding:
        return history.vector
    return jnp.where(history.mask[..., None], history.vector, 0)
