"""What checks the shapes in the signatures of the model while tests run."""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray

PACKAGES = (
    "pixelrec_jax.evaluation",
    "pixelrec_jax.items",
    "pixelrec_jax.losses",
    "pixelrec_jax.recommender",
    "pixelrec_jax.users",
)


def checked(function: Callable) -> Callable:
    """Returns the function with checks of the arguments and results that are arrays.

    Other types are for the type checker. Fields of Flax modules are declared more narrowly than
    what JAX takes, a dtype for one.
    """
    hints = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in hints.items() if says_shape(hint)}
    return beartype(function)


def says_shape(hint: Any) -> bool:
    """Whether an annotation has the shape of an array in it."""
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(map(says_shape, get_args(hint)))
