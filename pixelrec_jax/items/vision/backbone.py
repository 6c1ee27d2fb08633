"""The body that all vision encoders share: named blocks that run one after the other."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from pixelrec_jax.data.types import Array
from pixelrec_jax.items.vision.blocks import ATTENTION_POOL, POOL
from pixelrec_jax.items.vision.layers import Context
from pixelrec_jax.system.options import Flag, Option


class Step(NamedTuple):
    """One step of a backbone.

    Attributes:
      name: of the step and of its module.
      make: makes the module from its `name`.
      takes_context: whether the module is called with the context, because it runs differently in
        training. Other modules are called with the array alone.
    """

    name: str
    make: Callable[..., nn.Module]
    takes_context: bool = False


def settled(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `x` with the bits that it would have as the result of a program.

    A compiler that fuses the next step with this one may sum in another order, or keep more bits
    than the dtype has. A barrier prevents that. On CPU, XLA drops barriers before it fuses, so
    there `x` goes through a branch on a condition that is false, which XLA cannot know.
    """
    barrier = jax.lax.optimization_barrier

    def choose(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jax.lax.cond(barrier(False), jnp.negative, lambda x: x, x)

    return jax.lax.platform_dependent(x, cpu=choose, default=barrier)


class Backbone(nn.Module, kw_only=True):
    """Maps images to tokens or vectors in steps that can be run apart.

    A subclass adds the sizes of an architecture and names its modules in `steps`.

    Attributes:
      pool: how the last tokens are pooled, one of `EncoderSpec.pools`.
      train_mode_blocks: blocks that are in train mode when the context is.
      remat: whether the backward pass recomputes the activations of modules of `with_remat`.
      dtype: of computation.
    """

    pool: str = "mean"
    train_mode_blocks: tuple[str, ...] = ()
    remat: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.nowrap
    def steps(self) -> tuple[Step, ...]:
        """Returns the steps from pixels to output; one array passes from each to the next."""
        raise NotImplementedError

    @property
    def uses_batch_statistics(self) -> bool:
        """Whether batch norm of some block uses and updates the statistics of a batch."""
        return False

    @nn.nowrap
    def in_train_mode(self, step: str) -> bool:
        """Returns whether a step is in train mode when the context is."""
        return step in self.train_mode_blocks

    @nn.nowrap
    def with_remat(self, module: type[nn.Module]) -> type[nn.Module]:
        """Returns the module as a unit of rematerialisation."""
        return nn.remat(module) if self.remat else module

    @property
    def step_names(self) -> tuple[str, ...]:
        """The names of all steps in order, `POOL` included."""
        return tuple(step.name for step in self.steps())

    @property
    def blocks(self) -> tuple[str, ...]:
        """The names of the steps that can be trained or frozen: all but `POOL`."""
        return tuple(name for name in self.step_names if name != POOL)

    @nn.compact
    def run(
        self,
        x: Float[Array, "M *map C"],
        start: int | str = 0,
        stop: int | str | None = None,
        context: Context | None = None,
    ) -> Float[Array, "M *out C2"]:
        """Returns the input of step `stop`, made by the steps from `start` on.

        After the last step it is tokens if `pool` is "tokens", and vectors otherwise. In
        evaluation, run(run(x, 0, k), k) equals run(x) to the bit for every k, even if the two runs
        are compiled apart.

        Args:
          x: the input of step `start`; images for the first step.
          start: the first step to run, by its name or its place in `step_names`.
          stop: the step to stop before, likewise; None runs to the end.
          context: how to run; by default evaluation.

        Raises:
          ValueError: no step has this name.
        """
        context = context or Context()
        for step in self.steps()[self._place(start) : self._place(stop)]:
            module = step.make(name=step.name)
            if step.takes_context:
                x = module(x, context.only(self.in_train_mode(step.name)))
            else:
                x = module(x)
            x = settled(x)
        return x

    def __call__(
        self, image: Float[Array, "M H W 3"], context: Context | None = None
    ) -> Float[Array, "M *tokens C"]:
        """Returns the tokens or the vector of each image, of `dtype`."""
        return self.run(image, context=context)

    @nn.nowrap
    def _place(self, step: int | str | None) -> int | None:
        return self.step_names.index(step) if isinstance(step, str) else step


class BatchNormBackbone(Backbone, kw_only=True):
    """A backbone with batch norm, which is all that differs between train mode and evaluation.

    Attributes:
      frozen_statistics: whether no block is ever in train mode: an item's vector does then not
        depend on the rest of the batch.
    """

    frozen_statistics: bool = Option(
        "whether batch norm keeps its running statistics in trained blocks as well", Flag()
    ).field(False)

    @property
    def uses_batch_statistics(self) -> bool:
        """See `Backbone`. Attention pooling has no batch norm."""
        return any(self.in_train_mode(name) for name in self.blocks if name != ATTENTION_POOL)

    @nn.nowrap
    def in_train_mode(self, step: str) -> bool:
        """See `Backbone`."""
        return not self.frozen_statistics and super().in_train_mode(step)
