"""SR-GNN: a gated graph network over the items of a session (Wu et al., AAAI 2019)."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from pixelrec_jax.data.types import Array, History
from pixelrec_jax.initializers import symmetric_uniform
from pixelrec_jax.system.options import Option, Whole
from pixelrec_jax.users.encoder import UserEncoder, visible_embeddings


def session_graph(
    item: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> tuple[Float[Array, "B L L"], Float[Array, "B L L"]]:
    """Returns two matrices that average states over the neighbours of each slot's item.

    For states h of slots, the product of the first matrix and h is the mean over the distinct items
    that come right before the slot's item, and the product of the second and h the mean over those
    that come right after it; zero where there are none. Repeated transitions count once.

    An item that occurs several times is one node of the graph. Every slot carries the state of its
    item's node, and the item's first slot stands for the node. Slots are never sorted or gathered,
    so all shapes are static.

    Args:
      item: integers that tell the items of a row apart.
      mask: False at padding, which is not a node.
    """
    same = (item[:, :, None] == item[:, None, :]) & mask[:, :, None] & mask[:, None, :]
    first = jnp.argmax(same, axis=-1) == jnp.arange(item.shape[-1])[None]  # its item's first slot
    same = same.astype(jnp.float32)
    follows = same[:, :, :-1] @ same[:, 1:] > 0  # [b, u, v]: v's item comes right after u's

    def mean(edges: Bool[Array, "B L L"]) -> Float[Array, "B L L"]:
        edges = (edges & first[:, None, :]).astype(jnp.float32)
        return edges / jnp.maximum(edges.sum(axis=-1, keepdims=True), 1)

    return mean(follows.swapaxes(1, 2)), mean(follows)


class SRGNN(UserEncoder):
    """Encodes the user by the graph of the history's items and attention from the last item.

    All parameters start U(-1 / sqrt(D), 1 / sqrt(D)), as in the reference.
    """

    steps: int = Option(
        "how often states move along the edges, with the same parameters", Whole()
    ).field(2)

    @nn.compact
    def __call__(self, history: History, *, train: bool) -> Float[Array, "B 1 {self.width}"]:
        """Returns one query for each user, float32."""
        width = history.item_embeddings.shape[-1]
        init = symmetric_uniform(width**-0.5)

        def dense(features: int, name: str, *, bias: bool = True) -> nn.Dense:
            return nn.Dense(
                features,
                use_bias=bias,
                kernel_init=init,
                bias_init=init,
                dtype=self.dtype,
                name=name,
            )

        before, after = session_graph(history.item, history.mask)
        edges = {"incoming": before.astype(self.dtype), "outgoing": after.astype(self.dtype)}
        along = {name: dense(width, name) for name in edges}
        # Added to every mean, even to the zero of a node without neighbours.
        bias = {
            name: self.param(f"{name}_bias", init, (width,), jnp.float32).astype(self.dtype)
            for name in edges
        }
        gates_message, gates_state = dense(3 * width, "message"), dense(3 * width, "state")
        state = visible_embeddings(history, show_padding=False).astype(self.dtype)
        for _ in range(self.steps):
            message = [edges[name] @ along[name](state) + bias[name][None, None] for name in edges]
            reset, update, new = jnp.split(gates_message(jnp.concatenate(message, -1)), 3, axis=-1)
            reset_state, update_state, new_state = jnp.split(gates_state(state), 3, axis=-1)
            update = nn.sigmoid(update + update_state)
            new = nn.tanh(new + nn.sigmoid(reset + reset_state) * new_state)
            state = new + update * (state - new)

        last = state[:, -1:]
        attention = nn.sigmoid(dense(width, "last")(last) + dense(width, "each")(state))
        attention = dense(1, "attention", bias=False)(attention)
        session = jnp.where(history.mask[..., None], attention * state, 0)
        session = session.sum(axis=1, keepdims=True)
        user = dense(width, "out")(jnp.concatenate([session, last], axis=-1))
        return user.astype(jnp.float32)
