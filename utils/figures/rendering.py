"""Views of a volume from a camera that turns about the vertical axis: a small ray caster.

Axis order is (x, y, z); z is up. The projection is orthographic. Views are (rows, columns) with
row 0 at the top; lengths in the volume are voxels, on the view pixels. Nothing here draws text or
writes files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy import ndimage

LIGHT = np.array([-0.45, 0.65, -0.61])
"""Unit vector towards the light, in camera coordinates (right, up, away from the viewer)."""
AMBIENT = 0.30
"""Brightness of a surface that faces away from the light."""
FOG = 0.55
"""Share of the brightness that is lost from the nearest to the farthest sample of a ray."""


@dataclass(frozen=True)
class Camera:
    """An orthographic camera about the centre of a volume; its view holds all corners."""

    shape: tuple[int, int, int]
    """Shape of the volume in voxels."""
    azimuth: float
    """Turn about the vertical axis, in radians; 0 looks along +y with x to the right."""
    elevation: float = 0.35
    """Angle from which the camera looks down, in radians."""
    zoom: float = 1.0
    """Pixels per voxel."""

    @property
    def axes(self) -> np.ndarray:
        """(3, 3) float64: unit vectors to the right, up, and away from the viewer, one a row."""
        right = np.array([np.cos(self.azimuth), np.sin(self.azimuth), 0.0])
        level = np.array([-np.sin(self.azimuth), np.cos(self.azimuth), 0.0])
        vertical = np.array([0.0, 0.0, 1.0])
        up = np.cos(self.elevation) * vertical + np.sin(self.elevation) * level
        away = np.cos(self.elevation) * level - np.sin(self.elevation) * vertical
        return np.stack([right, up, away])

    @property
    def grid(self) -> tuple[int, int, int]:
        """(depth, rows, columns) of the samples: a voxel apart in depth, a pixel across.

        It is the same for all azimuths.
        """
        x, y, z = self.shape
        across = np.hypot(x, y)
        rows = across * np.sin(self.elevation) + z * np.cos(self.elevation)
        depth = across * np.cos(self.elevation) + z * np.sin(self.elevation)
        return (
            int(np.ceil(depth)) + 2,
            int(np.ceil(rows * self.zoom)) + 2,
            int(np.ceil(across * self.zoom)) + 2,
        )

    def project(self, points: np.ndarray) -> np.ndarray:
        """Return where ``points`` (N, 3), in voxels from the volume's corner, are seen.

        Returns:
            (N, 3) float64: column and row in pixels, depth in voxels.
        """
        seen = (np.asarray(points) - np.array(self.shape) / 2) @ self.axes.T
        depth, rows, columns = self.grid
        return np.stack(
            [
                columns / 2 + seen[:, 0] * self.zoom,
                rows / 2 - seen[:, 1] * self.zoom,
                depth / 2 + seen[:, 2],
            ],
            axis=1,
        )

    def to_volume(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (matrix (3, 3), offset (3,)) from (depth, row, column) to voxel indices."""
        right, up, away = self.axes
        matrix = np.stack([away, -up / self.zoom, right / self.zoom], axis=1)
        middle = (np.array(self.grid) - 1) / 2
        return matrix, (np.array(self.shape) - 1) / 2 - matrix @ middle


@dataclass(frozen=True)
class View:
    """What a camera sees; all (rows, columns) float32 in 0..1, brightness dimmed with depth."""

    in_front: np.ndarray
    """Brightest fluorescence before the first surface, or along the whole ray without one."""
    whole: np.ndarray
    """Brightest fluorescence along the whole ray, as if there were no surfaces."""
    shade: np.ndarray
    """Brightness of the first surface; 0 where there is none."""
    cover: np.ndarray
    """How much of the pixel the surface covers: 1 inside, in between at its rim."""


def smooth_solid(mask: np.ndarray) -> np.ndarray:
    """Return ``mask`` (X, Y, Z) blurred by a Gaussian of 0.7 voxels, float32 in 0..1."""
    return ndimage.gaussian_filter(mask.astype(np.float32), 0.7, mode="constant")


def cast(camera: Camera, fluorescence: np.ndarray, solid: np.ndarray) -> View:
    """Cast a ray through each pixel, in steps of a voxel, with linear interpolation.

    Args:
        camera: the view.
        fluorescence: (X, Y, Z) float32 in 0..1, shown by its maximum along the ray.
        solid: (X, Y, Z) float32 in 0..1, such as :func:`smooth_solid`'s; the surface lies at 0.5
            and is lit from the upper left.
    """
    matrix, offset = camera.to_volume()
    towards_light = LIGHT @ camera.axes
    view = np.zeros((4, *camera.grid[1:]), dtype=np.float32)
    _cast(view, camera.grid[0], matrix, offset, towards_light, fluorescence, solid)
    in_front, whole, shade, peak = view
    return View(in_front, whole, shade, cover=np.clip((peak - 0.5) / 0.25, 0.0, 1.0))


@numba.njit(cache=True)
def _cast(view, steps, matrix, offset, towards_light, fluorescence, solid):
    _, rows, columns = view.shape
    away = matrix[:, 0]
    for row in range(rows):
        for column in range(columns):
            start = offset + matrix[:, 1] * row + matrix[:, 2] * column
            begin, end = _steps_inside(start, away, steps, solid.shape)
            before, hit = 0.0, False
            for k in range(begin, end):
                x = start[0] + k * away[0]
                y = start[1] + k * away[1]
                z = start[2] + k * away[2]
                fog = 1.0 - FOG * k / max(steps - 1, 1)
                glow = _interpolate(fluorescence, x, y, z) * fog
                here = _interpolate(solid, x, y, z)
                view[1, row, column] = max(view[1, row, column], glow)
                view[3, row, column] = max(view[3, row, column], here)
                if not hit and here > 0.5:
                    hit = True
                    back = (here - 0.5) / (here - before)
                    facing = _facing(solid, start + (k - back) * away, towards_light)
                    view[2, row, column] = (AMBIENT + (1.0 - AMBIENT) * facing) * fog
                if not hit:
                    view[0, row, column] = max(view[0, row, column], glow)
                before = here


@numba.njit(cache=True)
def _steps_inside(start, away, steps, shape):
    """Return the range [begin, end) of the steps at which a ray may touch the volume."""
    begin, end = 0.0, steps - 1.0
    for axis in range(3):
        low, high = -1.0 - start[axis], shape[axis] - start[axis]
        if abs(away[axis]) < 1e-9:
            if low > 0.0 or high < 0.0:
                return 0, 0
            continue
        first, last = low / away[axis], high / away[axis]
        begin, end = max(begin, min(first, last)), min(end, max(first, last))
    return int(np.ceil(begin)), int(np.floor(end)) + 1


@numba.njit(cache=True)
def _interpolate(volume, x, y, z):
    """Return ``volume`` at a position in voxel indices, linear between voxels, 0 outside."""
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    total = 0.0
    for a in range(i, i + 2):
        for b in range(j, j + 2):
            for c in range(k, k + 2):
                if (
                    0 <= a < volume.shape[0]
                    and 0 <= b < volume.shape[1]
                    and 0 <= c < volume.shape[2]
                ):
                    near = (1.0 - abs(x - a)) * (1.0 - abs(y - b)) * (1.0 - abs(z - c))
                    total += near * volume[a, b, c]
    return total


@numba.njit(cache=True)
def _facing(solid, at, towards_light):
    """Return the cosine, at least 0, between the surface's outward normal and the light."""
    outward = np.zeros(3)
    for axis in range(3):
        step = np.zeros(3)
        step[axis] = 1.0
        less, more = at - step, at + step
        outward[axis] = _interpolate(solid, less[0], less[1], less[2]) - _interpolate(
            solid, more[0], more[1], more[2]
        )
    norm = np.sqrt(np.sum(outward**2))
    return max(np.sum(outward * towards_light) / max(norm, 1e-9), 0.0)
