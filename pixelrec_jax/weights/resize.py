"""Bicubic interpolation of an encoder's weights per position, for another resolution."""

from math import isqrt

import numpy as np


def resize_grid(x: np.ndarray, length: int, *, before: int = 0, after: int = 0) -> np.ndarray:
    """Interpolates the rows of a square grid to another square grid.

    The interpolation is bicubic with a = -0.75 and half-pixel centres, without antialiasing, as in
    PyTorch, with which the published encoders were adapted.

    Args:
      x: float[before + g * g + after, C].
      length: number of rows of the result, before + h * h + after.
      before: number of rows before the grid, which are kept, such as that of a class token.
      after: number of rows after the grid, which are kept.

    Returns:
      float32[length, C]; `x` itself if its length is right or one of the grids is not square.
    """
    old, new = len(x) - before - after, length - before - after
    if old == new or min(old, new) < 1 or isqrt(old) ** 2 != old or isqrt(new) ** 2 != new:
        return x
    weight = _bicubic(isqrt(old), isqrt(new))
    x = x.astype(np.float64)
    grid = x[before : before + old].reshape(isqrt(old), isqrt(old), x.shape[1])
    grid = np.einsum("io,jp,opc->ijc", weight, weight, grid, optimize=True).reshape(new, x.shape[1])
    return np.concatenate([x[:before], grid, x[before + old :]]).astype(np.float32)


def _bicubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """Returns float64[new, old]: the weight of each old position in each new one, edges clamped."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    nearest = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
    distance = np.abs(centre[:, None] - nearest)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weight = np.zeros((new, old))
    place = np.clip(nearest, 0, old - 1)
    np.add.at(weight, (np.arange(new)[:, None], place), np.where(distance <= 1, near, far))
    return weight
