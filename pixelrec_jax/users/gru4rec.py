"""GRU4Rec: a gated recurrent unit over the history (Hidasi et al., ICLR 2016)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.initializers import symmetric_uniform
from pixelrec_jax.system.options import Option, Whole
from pixelrec_jax.users.encoder import SHOW_PADDING, UserEncoder, visible_embeddings


class GRU4Rec(UserEncoder):
    """Encodes the user after each item of the history by a GRU without biases and a dense layer.

    The gates are those of Cho et al. (2014) in PyTorch's form: the reset gate acts after the
    recurrent product. A kernel [in, 3 * H] holds reset, update and candidate side by side. As in
    the reference, each kernel starts Xavier uniform as a whole, and the dense layer starts as in
    PyTorch. Zeros at padding leave the GRU's state at zero.
    """

    expansion: int = Option("width of the GRU's state as a multiple of D", Whole()).field(1)
    show_padding: bool = SHOW_PADDING.field(False)

    @nn.compact
    def __call__(self, history: History, *, train: bool) -> Float[Array, "B L {self.width}"]:
        """Returns float32 queries; query t has seen the items up to and including slot t."""
        x = visible_embeddings(history, show_padding=self.show_padding).astype(self.dtype)
        rows, _, width = x.shape
        hidden = self.expansion * width
        xavier = nn.initializers.xavier_uniform()
        gates_in = nn.Dense(
            3 * hidden, use_bias=False, kernel_init=xavier, dtype=self.dtype, name="input"
        )(x)
        recurrent = self.param("recurrent", xavier, (hidden, 3 * hidden), jnp.float32)
        recurrent = recurrent.astype(self.dtype)

        def step(
            state: Float[Array, "B H"], gates_in: Float[Array, "B 3*H"]
        ) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
            gates = state.astype(self.dtype) @ recurrent
            # The state accumulates over steps, so it stays float32 whatever `dtype` is.
            reset_in, update_in, new_in = jnp.split(gates_in.astype(jnp.float32), 3, axis=-1)
            reset, update, new = jnp.split(gates.astype(jnp.float32), 3, axis=-1)
            update = nn.sigmoid(update_in + update)
            new = nn.tanh(new_in + nn.sigmoid(reset_in + reset) * new)
            state = (1 - update) * new + update * state
            return state, state

        start = jnp.zeros((rows, hidden), jnp.float32)
        _, states = jax.lax.scan(step, start, gates_in.swapaxes(0, 1))  # over [L, B, 3 * H]
        init = symmetric_uniform(hidden**-0.5)
        out = nn.Dense(width, kernel_init=init, bias_init=init, dtype=self.dtype, name="out")
        return out(states.swapaxes(0, 1)).astype(jnp.float32)
