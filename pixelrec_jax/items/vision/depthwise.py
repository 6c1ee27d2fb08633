"""Depthwise convolution, one filter per channel, in the form that is fast on the device."""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

Pads = tuple[tuple[int, int], tuple[int, int]]


def pads(size: Sequence[int], kernel: int, stride: int, padding: str) -> Pads:
    """Returns the zeros before and after each side of an image of `size` pixels.

    "torch" puts half a kernel on every side. "same" is TensorFlow's: just enough zeros for
    ceil(size / stride) outputs, and an odd one goes after.
    """
    if padding == "torch":
        side = (kernel - 1) // 2
        return (side, side), (side, side)
    height, width = jax.lax.padtype_to_pads(size, (kernel,) * 2, (stride,) * 2, "SAME")
    return height, width


class Depthwise(nn.Module):
    """Depthwise convolution with a square kernel and no bias.

    Attributes:
      kernel: side of the kernel in pixels.
      stride: in pixels, in both directions.
      padding: see `pads`.
      dtype: of computation.
    """

    kernel: int
    stride: int
    padding: Literal["torch", "same"]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "M H W C"]) -> Float[jax.Array, "M H2 W2 C"]:
        """Returns the convolution of x, of `dtype`."""
        shape = (self.kernel, self.kernel, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.he_normal(), shape, jnp.float32)
        sides = pads(x.shape[1:3], self.kernel, self.stride, self.padding)
        return depthwise(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, sides)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise(
    x: Float[jax.Array, "M H W C"], kernel: Float[jax.Array, "k k 1 C"], stride: int, sides: Pads
) -> Float[jax.Array, "M H2 W2 C"]:
    """Returns the convolution of each channel of x with its own filter.

    XLA's CPU backend has no fast convolution with groups. There we sum shifted images, which is
    about 8 times as fast, and compute the gradient by `shifted_gradients`.
    """
    # The choice lies inside the custom derivative: differentiating it would keep the residuals of
    # both forms.
    settings = {"stride": stride, "sides": sides}
    return jax.lax.platform_dependent(
        x, kernel, cpu=partial(shifted, **settings), default=partial(grouped, **settings)
    )


def grouped(
    x: Float[jax.Array, "M H W C"], kernel: Float[jax.Array, "k k 1 C"], stride: int, sides: Pads
) -> Float[jax.Array, "M H2 W2 C"]:
    """Returns the result of `depthwise` by XLA's convolution with one group per channel."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        sides,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def grouped_gradients(
    x: Float[jax.Array, "M H W C"],
    kernel: Float[jax.Array, "k k 1 C"],
    out: Float[jax.Array, "M H2 W2 C"],
    stride: int,
    sides: Pads,
) -> tuple[Float[jax.Array, "M H W C"], Float[jax.Array, "k k 1 C"]]:
    """Returns the gradients of x and kernel, by XLA; `out` is the gradient of the result."""
    return jax.vjp(partial(grouped, stride=stride, sides=sides), x, kernel)[1](out)


def shifted(
    x: Float[jax.Array, "M H W C"], kernel: Float[jax.Array, "k k 1 C"], stride: int, sides: Pads
) -> Float[jax.Array, "M H2 W2 C"]:
    """Returns the result of `depthwise` as a sum of shifted images, one per kernel element.

    XLA compiles the sum to one loop.
    """
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    side = len(kernel)
    rows, columns = ((size - side) // stride + 1 for size in padded.shape[1:3])
    terms = (
        padded[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
        * kernel[i : i + 1, j : j + 1].astype(jnp.float32)
        for i in range(side)
        for j in range(side)
    )
    return sum(terms, start=jnp.zeros((), jnp.float32)).astype(x.dtype)


def shifted_gradients(
    x: Float[jax.Array, "M H W C"],
    kernel: Float[jax.Array, "k k 1 C"],
    out: Float[jax.Array, "M H2 W2 C"],
    stride: int,
    sides: Pads,
) -> tuple[Float[jax.Array, "M H W C"], Float[jax.Array, "k k 1 C"]]:
    """Returns the gradients of x and kernel, fast on CPU; `out` is the gradient of the result.

    Each element of the kernel's gradient is a sum over all pixels. All elements are summed together
    and row by row, because a row stays in the cache.
    """
    (x_gradient,) = jax.vjp(lambda x: shifted(x, kernel, stride, sides), x)[1](out)
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    side, columns = len(kernel), out.shape[2]
    zeros = [jnp.float32(0)] * side**2

    def add(
        sums: Sequence[Float[jax.Array, "*shape"]], terms: Sequence[Float[jax.Array, "*shape"]]
    ) -> list[Float[jax.Array, "*shape"]]:
        return [total + term for total, term in zip(sums, terms, strict=True)]

    def add_row(
        row: Int[jax.Array, ""], sums: list[Float[jax.Array, "M C"]]
    ) -> list[Float[jax.Array, "M C"]]:
        window = jax.lax.dynamic_slice_in_dim(padded, row * stride, side, axis=1)
        gradient = jax.lax.dynamic_index_in_dim(out, row, axis=1, keepdims=False)
        gradient = gradient.astype(jnp.float32)
        terms = [
            window[:, i, j : j + columns * stride : stride] * gradient
            for i in range(side)
            for j in range(side)
        ]
        return add(sums, jax.lax.reduce(terms, zeros, add, dimensions=(1,)))

    # Images are summed last, because they may lie on several devices.
    sums = [jnp.zeros((len(x), x.shape[-1]), jnp.float32)] * side**2
    sums = jnp.stack(jax.lax.fori_loop(0, out.shape[1], add_row, sums)).sum(1)
    return x_gradient, sums.reshape(kernel.shape).astype(kernel.dtype)


def _forward(
    x: Float[jax.Array, "M H W C"], kernel: Float[jax.Array, "k k 1 C"], stride: int, sides: Pads
) -> tuple[
    Float[jax.Array, "M H2 W2 C"], tuple[Float[jax.Array, "M H W C"], Float[jax.Array, "k k 1 C"]]
]:
    return depthwise(x, kernel, stride, sides), (x, kernel)


def _backward(
    stride: int,
    sides: Pads,
    inputs: tuple[Float[jax.Array, "M H W C"], Float[jax.Array, "k k 1 C"]],
    out: Float[jax.Array, "M H2 W2 C"],
) -> tuple[Float[jax.Array, "M H W C"], Float[jax.Array, "k k 1 C"]]:
    settings = {"stride": stride, "sides": sides}
    return jax.lax.platform_dependent(
        *inputs,
        out,
        cpu=partial(shifted_gradients, **settings),
        default=partial(grouped_gradients, **settings),
    )


depthwise.defvjp(_forward, _backward)
