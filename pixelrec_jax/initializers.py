"""Initialisers that Flax lacks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """Returns the initialiser U(-bound, bound).

    With bound = 1 / sqrt(fan-in), this is PyTorch's default for linear layers and convolutions.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init
