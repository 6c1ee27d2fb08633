"""The optimizer: AdamW with one group for the parameters that read images or features, one more."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pixelrec_jax.parallel.tables import add_rows, change_rows, gather_rows, is_sparse

# Parameters of an item encoder that are looked up by id or code: they do not read images.
_TABLES = ("table", "codebook")


class AdamState(NamedTuple):
    """The state of the optimizer.

    Attributes:
      count: int32[], the number of updates done.
      mu, nu: trees like the parameters, the mean gradient and the mean squared gradient.
    """

    count: jax.Array
    mu: Any
    nu: Any


class AdamW:
    """AdamW as the reference uses it: dense, with weight decay on every tensor and bias.

    `visual_lr` and `visual_weight_decay` apply to parameters that read images or features
    (backbone, head and other projections, the reference's `modal_*`), `lr` and `weight_decay` to
    all others. Both rates rise linearly over `warmup_steps`.

    A gradient may be sparse. By default the update equals that of the dense gradient, and changes
    every row of the table. With `lazy_tables`, moments, decay and update change only the rows that
    the batch reads, and the step neither reads nor writes another row: its cost does not grow with
    the table. In between, the moments of a row do not fade, and the row does not decay. Rates and
    the correction of bias follow the count of all steps, as in PyTorch's SparseAdam, and not how
    often the row was read.
    """

    def __init__(self, optim: ConfigDict, mesh: Mesh):
        """Keeps `config.optim`, and the mesh over which tables are sharded by rows."""
        self._optim, self._mesh = optim, mesh
        self._decays = {"lr": optim.weight_decay, "visual_lr": optim.visual_weight_decay}

    def init(self, params: dict) -> AdamState:
        """Returns the state before the first update."""
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return AdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(self, gradient: dict, state: AdamState, params: dict) -> tuple[dict, AdamState]:
        """Returns the parameters and the state after an update.

        Args:
          gradient: a tree like `params`, which may hold `IndexedSlices`.
          state, params: before the update.
        """
        optim = self._optim
        if optim.clip_norm:
            gradient = clip_by_global_norm(gradient, optim.clip_norm)
        count = state.count + 1
        rates = learning_rates(optim, state.count)

        def update(group: str, gradient: Any, *old: jax.Array) -> tuple[jax.Array, ...]:
            def change(gradient: Any, *old: jax.Array) -> tuple[jax.Array, ...]:
                param, mu, nu = old
                mu = self._moment(optim.b1, 1, gradient, mu)
                nu = self._moment(optim.b2, 2, gradient, nu)
                direction = self._direction(mu, nu, count)
                return param - rates[group] * (direction + self._decays[group] * param), mu, nu

            if optim.lazy_tables and is_sparse(gradient):
                return change_rows(change, gradient, old, self._mesh)
            return change(gradient, *old)

        params, mu, nu = _map(update, params, _groups(params), gradient, params, state.mu, state.nu)
        return params, AdamState(count, mu, nu)

    def update_norm(self, gradient: dict, state: AdamState, params: dict) -> jax.Array:
        """Returns the global norm float32[] of the update that gave these parameters.

        It is computed backwards, from the new parameters and the moments: a norm of the updates
        themselves would keep all of them in memory.

        Args:
          gradient: that of the update; lazy tables are read in its rows only.
          state, params: after the update.
        """
        rates = learning_rates(self._optim, state.count - 1)

        def square(group: str, gradient: Any, *new: jax.Array) -> tuple[jax.Array]:
            if self._optim.lazy_tables and is_sparse(gradient):
                new = tuple(gather_rows(x, gradient.ids, self._mesh) for x in new)
            param, mu, nu = new
            # new = old - update, and update = rate * (direction + decay * old).
            rate, decay = rates[group], self._decays[group]
            update = rate * (self._direction(mu, nu, state.count) + decay * param)
            return (jnp.sum(jnp.square(update / (1 - rate * decay))),)

        (squares,) = _map(square, params, _groups(params), gradient, params, state.mu, state.nu)
        return jnp.sqrt(sum(jax.tree.leaves(squares), start=jnp.zeros(())))

    def _moment(self, decay: float, order: int, gradient: Any, old: jax.Array) -> jax.Array:
        """Returns a moment after a gradient, of which only the rows are read if it is sparse."""
        new = (1 - decay) * _values(gradient) ** order
        old = decay * old
        return add_rows(old, gradient.ids, new, self._mesh) if is_sparse(gradient) else old + new

    def _direction(self, mu: jax.Array, nu: jax.Array, count: jax.Array) -> jax.Array:
        """Returns Adam's step for a learning rate of -1, from the moments after `count` updates."""
        optim = self._optim
        first, second = (_sum_of_weights(decay, count) for decay in (optim.b1, optim.b2))
        return mu / first / (jnp.sqrt(nu / second) + optim.eps)


def learning_rates(optim: ConfigDict, step: jax.Array) -> dict[str, jax.Array]:
    """Returns the rates float32[] of the update after `step` updates, by their key in `optim`."""

    def rate(highest: float) -> jax.Array:
        if not optim.warmup_steps:
            return jnp.asarray(highest, jnp.float32)
        schedule = optax.linear_schedule(highest / optim.warmup_steps, highest, optim.warmup_steps)
        return jnp.asarray(schedule(step), jnp.float32)

    return {name: rate(optim[name]) for name in ("lr", "visual_lr")}


def global_norm(gradient: Any) -> jax.Array:
    """Returns the Euclidean norm float32[] over all entries; of a sparse gradient, its values."""
    leaves = jax.tree.leaves(gradient, is_leaf=is_sparse)
    squares = (jnp.sum(jnp.square(_values(x).astype(jnp.float32))) for x in leaves)
    return jnp.sqrt(sum(squares, start=jnp.zeros(())))


def clip_by_global_norm(gradient: Any, max_norm: float) -> Any:
    """Returns the gradient, scaled to this norm if its own is larger."""
    norm = global_norm(gradient)
    scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)

    def clip(x: Any) -> Any:
        return x.replace(values=x.values * scale) if is_sparse(x) else x * scale

    return jax.tree.map(clip, gradient, is_leaf=is_sparse)


def _map(change: Callable[..., tuple], params: dict, *trees: Any) -> tuple[Any, ...]:
    """Returns trees like `params` of what `change` returns for each parameter.

    Args:
      change: takes the parameter's entry of each tree.
      params: gives the structure.
      *trees: have an entry for every parameter, which may be a tree itself.
    """
    structure = jax.tree.structure(params)
    entries = zip(*map(structure.flatten_up_to, trees), strict=True)
    results = zip(*(change(*entry) for entry in entries), strict=True)
    return tuple(structure.unflatten(x) for x in results)


def _sum_of_weights(decay: float, count: jax.Array) -> jax.Array:
    """Returns 1 - decay**count, the sum of a moment's weights, exact at low counts."""
    return -jnp.expm1(count * math.log(decay)) if decay else jnp.ones(())


def _values(x: Any) -> jax.Array:
    return x.values if is_sparse(x) else x


def _groups(params: dict) -> dict:
    """Returns for each parameter the key of its rate in `optim`."""

    def group(path: tuple, _: jax.Array) -> str:
        names = [key.key for key in path]
        return "visual_lr" if names[0] == "item_encoder" and names[-1] not in _TABLES else "lr"

    return jax.tree_util.tree_map_with_path(group, params)
