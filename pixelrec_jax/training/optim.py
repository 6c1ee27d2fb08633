"""The optimizer: AdamW with one group for the parameters that read images or features, one more."""

import math
from collections.abc import Hashable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelrec_jax.parallel.tables import add_rows, is_sparse

# Parameters of an item encoder that are looked up by id or code: they do not read images.
_TABLES = ("table", "codebook")


def build_optimizer(optim: ConfigDict, mesh: Mesh) -> optax.GradientTransformation:
    """Returns AdamW as the reference uses it: dense, with weight decay on every tensor and bias.

    `visual_lr` and `visual_weight_decay` apply to parameters that read images or features
    (backbone, head and other projections, the reference's `modal_*`), `lr` and `weight_decay` to
    all others. Both rates rise linearly over `warmup_steps`.
    """
    decays = _decays(optim)
    groups: dict[Hashable, optax.GradientTransformation] = {
        name: optax.chain(
            optax.add_decayed_weights(decays[name]), optax.scale_by_learning_rate(rate)
        )
        for name, rate in _schedules(optim).items()
    }
    # Gradients of tables stay sparse until Adam makes them dense; optax's transforms come after it.
    return optax.chain(
        clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity(),
        scale_by_adam(optim.b1, optim.b2, optim.eps, mesh),
        optax.partition(groups, _labels),
    )


def learning_rates(optim: ConfigDict, step: jax.Array) -> dict[str, jax.Array]:
    """Returns the rates float32[] of the update after `step` updates, by their key in `optim`."""
    return {
        name: jnp.asarray(rate(step) if callable(rate) else rate, jnp.float32)
        for name, rate in _schedules(optim).items()
    }


def update_norm(optim: ConfigDict, opt_state: Any, params: dict, step: jax.Array) -> jax.Array:
    """Returns the global norm float32[] of the update that gave these parameters.

    It is computed backwards, from the new parameters and Adam's moments: a norm of the updates
    themselves would keep all of them in memory.

    Args:
      optim, opt_state: settings of the optimizer, and its state after the update.
      params: parameters after the update.
      step: int32[], how many updates there were before it.
    """
    (adam,) = (x for x in opt_state if isinstance(x, optax.ScaleByAdamState))
    rates, decays = learning_rates(optim, step), _decays(optim)

    def update(mu: jax.Array, nu: jax.Array, new: jax.Array, group: str) -> jax.Array:
        # new = old - update, and update = rate * (direction + decay * old).
        rate, decay = rates[group], decays[group]
        direction = _direction(mu, nu, adam.count, optim.b1, optim.b2, optim.eps)
        return rate * (direction + decay * new) / (1 - rate * decay)

    return global_norm(jax.tree.map(update, adam.mu, adam.nu, params, _labels(params)))


def _decays(optim: ConfigDict) -> dict[str, float]:
    return {"lr": optim.weight_decay, "visual_lr": optim.visual_weight_decay}


def _schedules(optim: ConfigDict) -> dict[str, float | optax.Schedule]:
    def schedule(lr: float) -> float | optax.Schedule:
        if not optim.warmup_steps:
            return lr
        return optax.linear_schedule(lr / optim.warmup_steps, lr, optim.warmup_steps)

    return {name: schedule(optim[name]) for name in ("lr", "visual_lr")}


def global_norm(tree: Any) -> jax.Array:
    """Returns the Euclidean norm float32[] over all entries of a gradient or of updates."""
    leaves = jax.tree.leaves(tree, is_leaf=is_sparse)
    squares = (jnp.sum(jnp.square(_values(x).astype(jnp.float32))) for x in leaves)
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Returns `optax.clip_by_global_norm` for gradients that may hold `IndexedSlices`."""

    def update(updates: Any, state: Any, params: Any = None):
        norm = global_norm(updates)
        scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)

        def clip(x: Any) -> Any:
            return x.replace(values=x.values * scale) if is_sparse(x) else x * scale

        return jax.tree.map(clip, updates, is_leaf=is_sparse), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_by_adam(b1: float, b2: float, eps: float, mesh: Mesh) -> optax.GradientTransformation:
    """Returns `optax.scale_by_adam` for gradients that may hold `IndexedSlices`.

    The updates are dense and equal those of a dense gradient; of a sparse gradient only the rows
    that it holds are read.
    """

    def moment(decay: float, order: int, gradient: Any, old: jax.Array) -> jax.Array:
        new = (1 - decay) * _values(gradient) ** order
        old = decay * old
        return add_rows(old, gradient.ids, new, mesh) if is_sparse(gradient) else old + new

    def update(updates: Any, state: Any, params: Any = None):
        count = jnp.asarray(state.count) + 1
        mu = jax.tree.map(partial(moment, b1, 1), updates, state.mu, is_leaf=is_sparse)
        nu = jax.tree.map(partial(moment, b2, 2), updates, state.nu, is_leaf=is_sparse)
        directions = jax.tree.map(lambda mu, nu: _direction(mu, nu, count, b1, b2, eps), mu, nu)
        return directions, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam().init, update)


def _direction(
    mu: jax.Array, nu: jax.Array, count: jax.Array, b1: float, b2: float, eps: float
) -> jax.Array:
    """Returns Adam's step for a learning rate of -1, from the moments after `count` updates."""
    first, second = (_sum_of_weights(decay, count) for decay in (b1, b2))
    return mu / first / (jnp.sqrt(nu / second) + eps)


def _sum_of_weights(decay: float, count: jax.Array) -> jax.Array:
    """Returns 1 - decay**count, the sum of a moment's weights, exact at low counts."""
    return -jnp.expm1(count * math.log(decay)) if decay else jnp.ones(())


def _values(x: Any) -> jax.Array:
    return x.values if is_sparse(x) else x


def _labels(params: dict) -> dict:
    def label(path: tuple, _: jax.Array) -> str:
        names = [key.key for key in path]
        return "visual_lr" if names[0] == "item_encoder" and names[-1] not in _TABLES else "lr"

    return jax.tree_util.tree_map_with_path(label, params)
