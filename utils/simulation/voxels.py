"""Unit cube coordinates to voxels and back; the one place that fixes the axis order.

Axis order is (x, y, z): ``volume[i, j, k]`` is the voxel whose centre lies at
((i + 0.5) / X, (j + 0.5) / Y, (k + 0.5) / Z) of the unit cube. A point belongs to voxel
floor(point * shape).
"""

from __future__ import annotations

import numpy as np


def to_voxels(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the voxel indices (N, D) int64 of ``points`` (N, D); they may lie outside."""
    return np.floor(points * np.array(shape)).astype(np.int64)


def voxel_centres(shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Return the unit cube coordinates (n,) float32 of the voxel centres along ``axis``."""
    return ((np.arange(shape[axis]) + 0.5) / shape[axis]).astype(np.float32)


def inside(voxels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return (N,) bool: which of ``voxels`` (N, D) lie in a volume of ``shape``."""
    return np.all((voxels >= 0) & (voxels < np.array(shape)), axis=1)
