"""The body that all vision encoders share: named blocks that run one after the other."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.blocks import POOL
from pixelrec_jax.items.vision.layers import Context


class Step(NamedTuple):
    """One part of a backbone.

    Attributes:
      name: of the step and of its module.
      make: makes the module from its `name`.
      takes_context: whether the module is called with the context, because training changes what it
        does. Others are called with the array alone.
    """

    name: str
    make: Callable[..., nn.Module]
    takes_context: bool = False


def settled(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x` with the bits that it would have as the result of a program.

    A compiler that fuses the next step with this one may sum in another order, or keep more bits
    than the dtype has. A barrier prevents that, but on CPU, XLA drops barriers before it fuses:
    there `x` passes a condition that never holds, which XLA cannot know.
    """
    barrier = jax.lax.optimization_barrier

    def choose(x: Float[Array, "..."]) -> Float[Array, "..."]:
        return jax.lax.cond(barrier(False), jnp.negative, lambda x: x, x)

    return jax.lax.platform_dependent(x, cpu=choose, default=barrier)


class Backbone(nn.Module, kw_only=True):
    """Maps images to tokens, maps or one vector in steps that can be run apart.

    An architecture adds its sizes and says in `steps` what it is made of.

    Attributes:
      pool: what becomes of the last tokens, one of `EncoderSpec.pools`.
      train_mode_blocks: blocks that are in train mode when the context is.
      remat: whether the backward pass recomputes activations within each module of `with_remat`.
      dtype: of computation.
    """

    pool: str = "mean"
    train_mode_blocks: tuple[str, ...] = ()
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.nowrap
    def steps(self) -> tuple[Step, ...]:
        """Returns the parts from pixels to output; between two of them is one array."""
        raise NotImplementedError

    @nn.nowrap
    def with_remat(self, module: type[nn.Module]) -> type[nn.Module]:
        """Returns the module as a unit of rematerialisation."""
        return nn.remat(module) if self.remat else module

    @property
    def step_names(self) -> tuple[str, ...]:
        """Names of all steps in order, `POOL` among them."""
        return tuple(step.name for step in self.steps())

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the steps but `POOL`, which has no weights; what can be trained or frozen."""
        return tuple(name for name in self.step_names if name != POOL)

    @nn.compact
    def run(
        self,
        x: Float[Array, "M *map C"],
        start: int | str = 0,
        stop: int | str | None = None,
        context: Context | None = None,
    ) -> Float[Array, "M *out C2"]:
        """Runs the steps from `start` up to, but not with, `stop`.

        In evaluation, run(run(x, 0, k), k) is run(x) to the bit for every k, also where the pieces
        are compiled apart.

        Args:
          x: dtype[M, ...], what enters step `start`: images [M, H, W, 3] for the first.
          start, stop: names of steps or places in `step_names`; without `stop` it runs to the end.
          context: how to run; by default evaluation.

        Returns:
          dtype[M, ...], what enters step `stop`; after the last step, tokens [M, S, C] if `pool` is
          "tokens" and vectors [M, C] otherwise.

        Raises:
          ValueError: there is no step of that name.
        """
        context = context or Context()
        for step in self.steps()[self._place(start) : self._place(stop)]:
            module = step.make(name=step.name)
            if step.takes_context:
                x = module(x, context.only(step.name in self.train_mode_blocks))
            else:
                x = module(x)
            x = settled(x)
        return x

    def __call__(
        self, image: Float[Array, "M H W 3"], context: Context | None = None
    ) -> Float[Array, "M *tokens C"]:
        """Returns dtype[M, S, C] or dtype[M, C] for float[M, H, W, 3]."""
        return self.run(image, context=context)

    @nn.nowrap
    def _place(self, step: int | str | None) -> int | None:
        return self.step_names.index(step) if isinstance(step, str) else step
