"""NextItNet: dilated causal convolutions over the history (Yuan et al., WSDM 2019)."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.initializers import symmetric_uniform
from pixelrec_jax.system.options import Option, Whole, Wholes
from pixelrec_jax.users.encoder import SHOW_PADDING, UserEncoder

LAYER_NORM_EPSILON = 1e-8  # as in the reference


class CausalConv(nn.Module):
    """A convolution over the present and past slots, with zeros before the first.

    It is one matrix product for each tap: histories are short, and a tap that always reaches before
    the first slot costs nothing. Like the reference, it starts as in PyTorch.

    Attributes:
      kernel_size: number of taps.
      dilation: distance of neighbouring taps in slots.
      dtype: of computation.
    """

    kernel_size: int
    dilation: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Returns the convolution of x along the slots."""
        length, width = x.shape[-2:]
        init = symmetric_uniform((self.kernel_size * width) ** -0.5)
        shape = (self.kernel_size, width, width)
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", init, (width,), jnp.float32).astype(self.dtype)
        y = bias[None, None]
        for tap in range(self.kernel_size):  # the last tap reads the present slot
            shift = (self.kernel_size - 1 - tap) * self.dilation
            if shift < length:
                past = x[:, : length - shift].astype(self.dtype) @ kernel[tap]
                y = y + jnp.pad(past, ((0, 0), (shift, 0), (0, 0)))
        return y


class ResidualBlock(nn.Module):
    """Residual block: two convolutions in a row, each followed by layer norm and ReLU.

    Attributes:
      kernel_size, dtype: see `CausalConv`.
      dilation: that of the first convolution; the second has twice as much.
    """

    kernel_size: int
    dilation: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "B L D"], visible: Bool[Array, "B L 1"]
    ) -> Float[Array, "B L D"]:
        """Returns x after the block; convolutions read zeros where `visible` is False."""
        y = x
        for n, dilation in enumerate((self.dilation, 2 * self.dilation), start=1):
            y = CausalConv(self.kernel_size, dilation, self.dtype, name=f"conv_{n}")(
                jnp.where(visible, y, 0)
            )
            norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name=f"norm_{n}")
            y = nn.relu(norm(y))
        return x + y


class NextItNet(UserEncoder):
    """Encodes the user after each item of the history by residual blocks of convolutions.

    If padding is shown, convolutions read its vectors as the earlier layers changed them. Otherwise
    they read zeros there, as they do before the first slot.
    """

    kernel_size: int = Option("number of taps of each convolution", Whole()).field(3)
    dilations: tuple[int, ...] = Option("slots from tap to tap, by block", Wholes()).field((1, 4))
    repeats: int = Option(
        "how often the blocks of all dilations are repeated, with new parameters", Whole()
    ).field(3)
    show_padding: bool = SHOW_PADDING.field(False)

    @nn.compact
    def __call__(self, history: History, *, train: bool) -> Float[Array, "B L {self.width}"]:
        """Returns float32 queries; query t has seen the items up to and including slot t."""
        visible = (history.mask | self.show_padding)[..., None]
        x = history.item_embeddings
        for n, dilation in enumerate(self.dilations * self.repeats):
            x = ResidualBlock(self.kernel_size, dilation, self.dtype, name=f"block_{n}")(x, visible)
        return x.astype(jnp.float32)
