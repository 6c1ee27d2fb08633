"""How tensors of published checkpoints become parameters, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt, prod

import numpy as np

from pixelrec_jax.weights.resize import resize_grid


@dataclass(frozen=True)
class Transform:
    """How a source tensor becomes a parameter, and back.

    Attributes:
      read: (source tensor, shape of the parameter) -> parameter. A tensor that does not fit is
        returned unchanged; its wrong shape is then reported.
      write: parameter -> source tensor.
    """

    read: Callable[[np.ndarray, tuple[int, ...]], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]


def _permute(*axes: int) -> Transform:
    """Returns the transposition of a source tensor with `len(axes)` dimensions."""
    back = np.argsort(axes)
    return Transform(
        lambda x, shape: x.transpose(axes) if x.ndim == len(axes) else x,
        lambda x: x.transpose(back),
    )


def _read_patches(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.transpose(2, 3, 1, 0).reshape(prod(x.shape[1:]), len(x)) if x.ndim == 4 else x


def _write_patches(x: np.ndarray) -> np.ndarray:
    patch = isqrt(x.shape[0] // 3)
    return x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


def _read_pointwise(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x[:, :, 0, 0].T if x.ndim == 4 and x.shape[2:] == (1, 1) else x


def _read_token(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x[0, 0] if x.shape[:-1] == (1, 1) else x


def _read_position(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    x = x[0] if x.ndim == 3 and len(x) == 1 else x
    return resize_grid(x, shape[0], before=1) if x.ndim == 2 else x


def _read_relative(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return resize_grid(x, shape[0], after=3) if x.ndim == 2 else x


SAME = Transform(lambda x, shape: x, lambda x: x)
LINEAR = _permute(1, 0)  # PyTorch [out, in] <-> Flax Dense [in, out]
CONV = _permute(2, 3, 1, 0)  # [out, in, h, w] <-> [h, w, in, out]
POINTWISE = Transform(_read_pointwise, lambda x: x.T[:, :, None, None])  # 1 x 1 <-> Dense
PATCHES = Transform(_read_patches, _write_patches)  # [C, 3, p, p] <-> Dense [p * p * 3, C]
TOKEN = Transform(_read_token, lambda x: x[None, None])  # [1, 1, C] <-> [C]
# The class token is first; the grid after it is interpolated to the resolution of the model.
POSITION = Transform(_read_position, lambda x: x)  # [1 + g * g, C]
BATCHED_POSITION = Transform(_read_position, lambda x: x[None])  # [1, 1 + g * g, C]
# Biases of relative positions, then 3 of the class token; the grid of offsets is interpolated.
RELATIVE = Transform(_read_relative, lambda x: x)  # [(2 * g - 1)^2 + 3, heads]
