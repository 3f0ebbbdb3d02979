"""Views of a volume from a camera that turns about the vertical axis: a small ray caster in numpy.

Axis order is (x, y, z); z is up. The projection is orthographic. Views are (rows, columns) with
row 0 at the top; lengths in the volume are voxels, on the view pixels. Nothing here draws text or
writes files.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    def sample(self, volume: np.ndarray) -> np.ndarray:
        """Return ``volume`` (X, Y, Z) on the grid (depth, rows, columns), linear, 0 outside."""
        matrix, offset = self.to_volume()
        return ndimage.affine_transform(
            volume, matrix, offset=offset, output_shape=self.grid, order=1, prefilter=False
        )


@dataclass(frozen=True)
class Surface:
    """A solid made ready for casting: a smoothed indicator in 0..1 and its gradient."""

    solid: np.ndarray
    """(X, Y, Z) float32; the surface lies at 0.5."""
    gradient: tuple[np.ndarray, np.ndarray, np.ndarray]
    """Derivatives of ``solid`` along x, y, z."""

    @classmethod
    def of_mask(cls, mask: np.ndarray, smoothing: float = 0.7) -> Surface:
        """Make a surface of ``mask`` (X, Y, Z), smoothed by a Gaussian of ``smoothing`` voxels."""
        solid = ndimage.gaussian_filter(mask.astype(np.float32), smoothing, mode="constant")
        x, y, z = np.gradient(solid)
        return cls(solid, (x, y, z))


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


def cast(camera: Camera, fluorescence: np.ndarray, surface: Surface) -> View:
    """Cast rays through ``fluorescence`` (X, Y, Z) float32 in 0..1 and solids of the same shape.

    Fluorescence is shown by the maximum along each ray, surfaces are lit from the upper left.
    """
    solid = camera.sample(surface.solid)
    deepest = len(solid)
    hit = solid > 0.5
    seen = hit.any(axis=0)
    first = np.where(seen, hit.argmax(axis=0), deepest)
    depths = np.arange(deepest)
    glow = camera.sample(fluorescence) * _fog(depths, deepest)[:, None, None]
    ahead = depths[:, None, None] < first
    return View(
        in_front=np.max(glow, axis=0, where=ahead, initial=0.0),
        whole=glow.max(axis=0),
        shade=_shade(camera, surface, solid, first),
        cover=np.clip((solid.max(axis=0) - 0.5) / 0.25, 0.0, 1.0),
    )


def _fog(depths: np.ndarray, deepest: int) -> np.ndarray:
    """Return the brightness left at ``depths`` (samples from the viewer) of ``deepest``."""
    return (1.0 - FOG * depths / max(deepest - 1, 1)).astype(np.float32)


def _shade(camera: Camera, surface: Surface, solid: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the brightness (rows, columns) of the surface at the ``first`` sample of each ray."""
    seen = first < len(solid)
    rows, columns = np.nonzero(seen)
    sample = first[seen]
    after = solid[sample, rows, columns]
    before = solid[np.maximum(sample - 1, 0), rows, columns]
    depth = sample - np.clip((after - 0.5) / np.maximum(after - before, 1e-6), 0.0, 1.0)
    matrix, offset = camera.to_volume()
    at = matrix @ np.stack([depth, rows, columns]) + offset[:, None]
    inward = np.stack(
        [ndimage.map_coordinates(g, at, order=1, mode="nearest") for g in surface.gradient]
    )
    outward = -inward / np.maximum(np.linalg.norm(inward, axis=0), 1e-6)
    facing = np.clip(LIGHT @ camera.axes @ outward, 0.0, 1.0)
    view = np.zeros(seen.shape, dtype=np.float32)
    view[seen] = (AMBIENT + (1.0 - AMBIENT) * facing) * _fog(depth, len(solid))
    return view
