"""Views of a volume that turns about its vertical axis: resampled by scipy, then looked through.

Axis order of volumes is (x, y, z), z is up; that of a view is (depth, row, column), row 0 at the
top. The projection is orthographic, from a little above; a voxel is a pixel.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

ELEVATION = 0.35  # angle from which the camera looks down, in radians
LIGHT = np.array([-0.61, -0.65, -0.45], np.float32)
"""Unit vector towards the light: away from the viewer, down, to the right."""
AMBIENT = 0.30  # brightness of a surface that faces away from the light
FOG = 0.55  # share of the brightness that is lost from the nearest to the farthest sample of a ray


@dataclass(frozen=True)
class View:
    """What the camera sees; all (rows, columns) in 0..1, brightness dimmed with depth."""

    # brightest fluorescence before the first surface, or along the whole ray without one
    in_front: np.ndarray
    whole: np.ndarray  # brightest fluorescence along the whole ray, as if there were no surfaces
    shade: np.ndarray  # brightness of the first surface; 0 where there is none
    cover: np.ndarray  # how much of the pixel the surface covers: 1 inside, in between at its rim


def camera_axes(azimuth: float) -> np.ndarray:
    """Return unit vectors away from the viewer, down, and to the right, one a row.

    ``azimuth`` is the turn in radians; 0 looks along +y with x to the right.
    """
    right = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    level = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    vertical = np.array([0.0, 0.0, 1.0])
    away = np.cos(ELEVATION) * level - np.sin(ELEVATION) * vertical
    down = -np.sin(ELEVATION) * level - np.cos(ELEVATION) * vertical
    return np.stack([away, down, right])


def view_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (depth, rows, columns) that hold all corners of a volume at each azimuth."""
    across, height = np.hypot(*shape[:2]), shape[2]
    depth = across * np.cos(ELEVATION) + height * np.sin(ELEVATION)
    rows = across * np.sin(ELEVATION) + height * np.cos(ELEVATION)
    return int(depth) + 3, int(rows) + 3, int(across) + 3


def project(points: np.ndarray, shape: tuple[int, ...], azimuth: float) -> np.ndarray:
    """Return where ``points`` (N, 3), in voxels from the volume's corner, are seen, (N, 3)."""
    middle = (np.array(view_shape(shape)) - 1) / 2
    return (points - np.array(shape) / 2) @ camera_axes(azimuth).T + middle


def look(fluorescence: np.ndarray, solid: np.ndarray, azimuth: float) -> View:
    """Return what is seen of two volumes (X, Y, Z) in 0..1.

    The maximum of the fluorescence along each ray, and the surface at 0.5 of ``solid``, a mask a
    little blurred, lit from the upper left.
    """
    matrix = camera_axes(azimuth).T
    output = view_shape(solid.shape)
    offset = (np.array(solid.shape) - 1) / 2 - matrix @ ((np.array(output) - 1) / 2)
    glow, body = (
        ndimage.affine_transform(volume, matrix, offset, output, order=1, mode="grid-constant")
        for volume in (fluorescence, solid)
    )
    steps = np.arange(output[0])[:, None, None]
    fog = (1.0 - FOG * steps / output[0]).astype(np.float32)
    glow = glow * fog
    inside = body > 0.5
    hit, first = inside.any(axis=0), inside.argmax(axis=0)[None]
    slope = np.stack([np.take_along_axis(g, first, 0)[0] for g in np.gradient(body)])
    outward = -slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-9)
    facing = np.tensordot(LIGHT, outward, 1).clip(0.0)
    return View(
        in_front=np.where(~hit | (steps < first), glow, np.float32(0)).max(axis=0),
        whole=glow.max(axis=0),
        shade=np.where(hit, (AMBIENT + (1.0 - AMBIENT) * facing) * fog[first[0], 0, 0], 0.0),
        cover=np.clip((body.max(axis=0) - 0.5) / 0.25, 0.0, 1.0),
    )
