"""Bicubic interpolation of what an encoder learned per position, for another resolution."""

from math import isqrt

import numpy as np


def resize_grid(x: np.ndarray, length: int, *, before: int = 0, after: int = 0) -> np.ndarray:
    """Interpolates rows that belong to a square grid to another square grid.

    Bicubic with a = -0.75 and half-pixel centres, without antialiasing: what PyTorch computes
    and what the published encoders were adapted with.

    Args:
      x: float[before + g * g + after, C].
      length: rows wanted, before + h * h + after.
      before: rows ahead of the grid that are kept, such as that of a class token.
      after: rows behind it that are kept.

    Returns:
      float32[length, C]; `x` itself if its length is right or one of the two is not a square.
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
    """float64[new, old]: the weight of every old place in every new one, borders repeated."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    nearest = np.floor(centre).astype(int)[:, None] + np.arange(-1, 3)
    distance = np.abs(centre[:, None] - nearest)
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    weight = np.zeros((new, old))
    place = np.clip(nearest, 0, old - 1)
    np.add.at(weight, (np.arange(new)[:, None], place), np.where(distance <= 1, near, far))
    return weight
