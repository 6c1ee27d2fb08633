"""The paper's dimension transformation layer: it maps an encoder's output to an item's vector."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, PRNGKeyArray

from pixelrec_jax.data.types import Array
from pixelrec_jax.initializers import symmetric_uniform


def _torch(key: PRNGKeyArray, shape: tuple[int, ...], dtype: DTypeLike) -> Float[Array, "*shape"]:
    return symmetric_uniform(shape[0] ** -0.5)(key, shape, dtype)


# How weights [C, D] of dense layers start; "torch" is PyTorch's default, U(+-1 / sqrt(C)).
KERNEL_INITS: dict[str, nn.initializers.Initializer] = {
    "normal": nn.initializers.normal(0.02),
    "xavier_normal": nn.initializers.xavier_normal(),
    "kaiming_normal": nn.initializers.kaiming_normal(),
    "torch": _torch,
}


def project(
    x: Float[Array, "M *tokens C"],
    widths: Sequence[int],
    *,
    init: str,
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "M {widths[-1]}"]:
    """Returns items' vectors, float32: x after dense layers, each followed by ReLU.

    The last ReLU is in the reference's code but not in the paper; it makes vectors non-negative. If
    x are tokens, each is projected, and their mean is the item's vector. The layers belong to the
    module that calls this in a compact method.

    Args:
      x: a vector or tokens for each item.
      widths: those of the layers dense_0, dense_1 ...; the last one is that of the layer head.
      init: how weights start, a key of `KERNEL_INITS`; biases start at zero, or as in PyTorch if
        it is "torch".
      dtype: of computation.
    """
    for n, features in enumerate(widths):
        bound = x.shape[-1] ** -0.5
        x = nn.Dense(
            features,
            kernel_init=KERNEL_INITS[init],
            bias_init=symmetric_uniform(bound) if init == "torch" else nn.initializers.zeros,
            dtype=dtype,
            name="head" if n == len(widths) - 1 else f"dense_{n}",
        )(x)
        x = nn.relu(x)
    x = x.astype(jnp.float32)
    return jnp.mean(x.reshape(len(x), -1, x.shape[-1]), axis=1) if x.ndim > 2 else x
