"""A stand-in for the two functions of `scipy.ndimage` that ViTPose's image processor in transformers needs.

Plain numpy, for two dimensions, after SciPy's documentation. SciPy itself would be imported at every start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def affine_transform(source: Array, matrix: Array, output_shape: Sequence[int], order: int) -> Array:
    """Return `source` (H, W) where the homogeneous `matrix` (3, 3) maps rows and columns of the output; 0 outside."""
    assert order == 1
    rows, columns = np.indices(output_shape)
    at = np.tensordot(matrix[:2], np.stack([rows, columns, np.ones_like(rows)]), axes=1)
    low = np.floor(at).astype(int)
    part = at - low
    last = np.array(source.shape)[:, None, None] - 1
    made = np.zeros(output_shape)
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        weight = (part[0] if down else 1 - part[0]) * (part[1] if across else 1 - part[1])
        place = np.clip(low + np.array([down, across])[:, None, None], 0, last)
        made += weight * source[place[0], place[1]]
    inside = ((at >= 0) & (at <= last)).all(axis=0)
    return np.where(inside, made, 0).astype(source.dtype)


def gaussian_filter(values: Array, sigma: float, radius: tuple[int, int], axes: tuple[int, int]) -> Array:
    """Return `values` (H, W) behind a Gaussian filter of `radius` cells, mirrored about the edges."""
    assert axes == (0, 1)
    assert radius[0] == radius[1]
    kernel = np.exp(-(np.arange(-radius[0], radius[0] + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for axis in axes:
        wide = np.pad(values, [(radius[0] if each == axis else 0,) * 2 for each in axes], mode="symmetric")
        values = np.apply_along_axis(np.convolve, axis, wide, kernel, "valid").astype(values.dtype)
    return values
