"""The paper's dimension transformation layer: from what an encoder sees to an item's vector."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, PRNGKeyArray

from pixelrec_jax.data.types import Array
from pixelrec_jax.initializers import symmetric_uniform


def _torch(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "*shape"]:
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
    dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "M {widths[-1]}"]:
    """Applies dense layers with ReLU; call it in a compact method, whose parameters they become.

    The ReLU is in the reference's code and not in the paper: item vectors are non-negative. If x
    are tokens, each is projected and the mean over them is the item's vector.

    Args:
      x: float[M, C] or tokens float[M, ..., C].
      widths: of the layers dense_0, dense_1 ... and, the last one, head.
      init: of the weights, a key of `KERNEL_INITS`; biases start at zero, or as PyTorch's.
      dtype: of computation.

    Returns:
      float32[M, widths[-1]].
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
