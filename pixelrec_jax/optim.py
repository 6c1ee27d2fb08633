"""The optimizer: AdamW with one group for what looks at images or features, one for the rest."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelrec_jax.errors import UserError
from pixelrec_jax.sharding import add_rows

# What is looked up by ids or codes, not seen.
_TABLES = ("table", "codebook")


def build_optimizer(optim: ConfigDict, mesh: Mesh) -> optax.GradientTransformation:
    """Builds AdamW as the reference uses it: dense, decaying every tensor, biases included.

    `visual_lr` and `visual_weight_decay` apply to what looks at images or features: trunk, head and
    other projections (the reference's `modal_*`), `lr` and `weight_decay` to the rest.
    `warmup_steps` ramps both rates up linearly.

    Raises:
      UserError: a negative rate, decay, clip norm or number of steps.
    """
    for name, value in optim.items():
        if value < 0:
            raise UserError(f"optim.{name}={value} is negative; give zero or more")
        if name in ("b1", "b2") and value >= 1:
            raise UserError(f"optim.{name}={value}; expected less than 1")

    def decay_and_rate(lr: float, weight_decay: float) -> optax.GradientTransformation:
        rate = optax.linear_schedule(lr / max(optim.warmup_steps, 1), lr, optim.warmup_steps)
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(rate if optim.warmup_steps else lr),
        )

    groups = {
        "visual": decay_and_rate(optim.visual_lr, optim.visual_weight_decay),
        "other": decay_and_rate(optim.lr, optim.weight_decay),
    }
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity(),
        _scale_by_adam(optim.b1, optim.b2, optim.eps, mesh),
        optax.partition(groups, _labels),
    )


def _scale_by_adam(
    b1: float, b2: float, eps: float, mesh: Mesh
) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` that takes tables' gradients by row, as `tables.by_row` makes them.

    It does the same to every row of a table, but reads the gradient's rows only.
    """

    def moment(decay: float, order: int, old: jax.Array, gradient: jax.Array, ids) -> jax.Array:
        new = (1 - decay) * gradient**order
        return decay * old + new if ids is None else add_rows(decay * old, ids, new, mesh)

    def update(gradient, state, params=None, *, ids=None):
        count = state.count + 1
        ids = jax.tree.map(lambda _: None, gradient) if ids is None else ids
        mu = jax.tree.map(partial(moment, b1, 1), state.mu, gradient, ids)
        nu = jax.tree.map(partial(moment, b2, 2), state.nu, gradient, ids)

        first, second = (_sum_of_weights(decay, count) for decay in (b1, b2))

        def direction(mu: jax.Array, nu: jax.Array) -> jax.Array:
            return mu / first / (jnp.sqrt(nu / second) + eps)

        return jax.tree.map(direction, mu, nu), optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam().init, update)


def _sum_of_weights(decay: float, count: jax.Array) -> jax.Array:
    """Returns 1 - decay**count, of a moment's weights, without the cancellation of first steps."""
    return -jnp.expm1(count * math.log(decay)) if decay else jnp.ones(())


def _labels(params: dict) -> dict:
    def label(path: tuple, _: jax.Array) -> str:
        names = [key.key for key in path]
        return "visual" if names[0] == "item_encoder" and names[-1] not in _TABLES else "other"

    return jax.tree_util.tree_map_with_path(label, params)
