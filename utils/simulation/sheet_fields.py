"""Painting the fields of columns that are paths: each voxel goes to the nearest path.

Positions are in voxels; the centre of voxel i lies at i + 0.5.
"""

from __future__ import annotations

import numba
import numpy as np

from utils.errors import UserError
from utils.simulation.fields import ColumnFields
from utils.simulation.sheet import Columns

REACH = 0.65
"""A column at a border owns voxels up to here, in mean distances to its lattice neighbours."""
INNER_REACH = 0.8
"""The same of a column with all its six neighbours, so that no gap between columns stays open."""
NOWHERE = 2.0
"""Distance of voxels without an owner."""


def paint_fields(columns: Columns, shape: tuple[int, int, int]) -> ColumnFields:
    """Return the fields of (X, Y, Z) voxels: owner, distance, depth, and neighbour where drawn.

    A voxel belongs to the path whose nearest segment is nearest in voxels (ties: the first), of
    the segments within whose reach it lies; it must not lie beyond the path's ends, which are cut
    square. Without an owner the distance is 2 and the depth 0.

    Raises:
        UserError: more than 65535 columns.
    """
    n, depths = columns.spacing.shape
    if n > np.iinfo(np.uint16).max:
        raise UserError(f"{n} columns do not fit 16-bit instance ids (at most 65535)")
    paths, spacing = columns.paths.astype(np.float32), columns.spacing.astype(np.float32)
    nearest = np.full(shape, np.inf, dtype=np.float32)
    segment = np.full(shape, -1, dtype=np.int32)
    _paint_segments(nearest, segment, paths, _overlaps(paths), _reaches(columns))
    owner = np.zeros(shape, dtype=np.uint16)
    depth = np.zeros(shape, dtype=np.float32)
    _normalise(nearest, segment, paths, spacing, owner, depth)
    if not len(columns.neuropil):
        return ColumnFields(owner, nearest, depth)
    neighbour = np.zeros(shape, dtype=np.uint8)
    for centre, *axes in columns.neuropil.astype(np.float64):
        lengths = np.linalg.norm(axes, axis=1, keepdims=True)
        _paint_ellipsoid(neighbour, owner, centre, axes / lengths**2)
    return ColumnFields(owner, nearest, depth, neighbour)


def _reaches(columns: Columns) -> np.ndarray:
    """Return (N, D) float32: up to which distance, in voxels, each node's column owns voxels.

    A segment takes the larger of its nodes' reaches.
    """
    first, second = columns.neighbours.T
    n, depths = columns.spacing.shape
    steps = np.sqrt(
        np.sum((columns.paths[first] - columns.paths[second]).astype(np.float64) ** 2, axis=2)
    )
    degree = np.bincount(columns.neighbours.ravel(), minlength=n)
    total = np.zeros((n, depths))
    for end in (first, second):
        np.add.at(total, end, steps)
    lonely = (degree == 0)[:, None]
    mean = np.where(lonely, columns.spacing, total / np.maximum(degree, 1)[:, None])
    return (np.where(degree == 6, INNER_REACH, REACH)[:, None] * mean).astype(np.float32)


def _overlaps(paths: np.ndarray) -> np.ndarray:
    """Return (N, D) float32: how far, per distance, segments must reach beyond an inner node.

    On the outer side of a bend by an angle the node itself is the nearest point of a wedge; each
    of its two segments covers half of it, sin(angle / 2) of the distance beyond its own end.
    """
    steps = np.diff(paths.astype(np.float64), axis=1)
    steps /= np.linalg.norm(steps, axis=2, keepdims=True)
    overlaps = np.zeros(paths.shape[:2], dtype=np.float32)
    cosine = np.clip(np.sum(steps[:, 1:] * steps[:, :-1], axis=2), -1.0, 1.0)
    overlaps[:, 1:-1] = np.sqrt((1.0 - cosine) / 2.0)
    return overlaps


@numba.njit(cache=True)
def _paint_segments(nearest, segment, paths, overlaps, radii):  # type: ignore[no-untyped-def]
    """Lower ``nearest`` (X, Y, Z) float32 to the squared distance, note the segment's number.

    Rows along z are cut where they enter and leave the segment's cylinder.
    """
    nx, ny, nz = nearest.shape
    last = paths.shape[1] - 2
    zero, half = np.float32(0.0), np.float32(0.5)
    for n in range(len(paths)):
        for s in range(last + 1):
            px, py, pz = paths[n, s]
            ux, uy, uz = paths[n, s + 1] - paths[n, s]
            length = np.sqrt(ux * ux + uy * uy + uz * uz)
            ux, uy, uz = ux / length, uy / length, uz / length
            r = max(radii[n, s], radii[n, s + 1])
            low, high = -r * overlaps[n, s], length + r * overlaps[n, s + 1]
            tx = r * np.sqrt(max(zero, np.float32(1.0) - ux * ux))
            ty = r * np.sqrt(max(zero, np.float32(1.0) - uy * uy))
            i0 = max(int(np.ceil(px + min(low * ux, high * ux) - tx - half)), 0)
            i1 = min(int(np.floor(px + max(low * ux, high * ux) + tx - half)) + 1, nx)
            j0 = max(int(np.ceil(py + min(low * uy, high * uy) - ty - half)), 0)
            j1 = min(int(np.floor(py + max(low * uy, high * uy) + ty - half)) + 1, ny)
            across = max(np.float32(1.0) - uz * uz, np.float32(1e-6))
            number = np.int32(n * (last + 1) + s)
            for i in range(i0, i1):
                wx = np.float32(i) + half - px
                for j in range(j0, j1):
                    wy = np.float32(j) + half - py
                    a0 = wx * ux + wy * uy
                    c = wx * wx + wy * wy - a0 * a0 - r * r
                    root = a0 * a0 * uz * uz - across * c
                    if root < zero:
                        continue
                    root = np.sqrt(root)
                    z0, z1 = (a0 * uz - root) / across, (a0 * uz + root) / across
                    if abs(uz) > np.float32(1e-6):
                        e0, e1 = (low - a0) / uz, (high - a0) / uz
                        z0, z1 = max(z0, min(e0, e1)), min(z1, max(e0, e1))
                    elif a0 < low or a0 > high:
                        continue
                    k0 = max(int(np.ceil(min(max(z0 + pz - half, zero), np.float32(nz)))), 0)
                    k1 = int(np.floor(min(max(z1 + pz - half, np.float32(-1)), np.float32(nz)))) + 1
                    best, numbers = nearest[i, j], segment[i, j]
                    for k in range(k0, min(k1, nz)):
                        wz = np.float32(k) + half - pz
                        a = min(max(a0 + uz * wz, zero), length)
                        dx, dy, dz = wx - a * ux, wy - a * uy, wz - a * uz
                        d = dx * dx + dy * dy + dz * dz
                        numbers[k] = number if d < best[k] else numbers[k]
                        best[k] = d if d < best[k] else best[k]


@numba.njit(cache=True)
def _normalise(distance, segment, paths, spacing, owner, depth):  # type: ignore[no-untyped-def]
    """Turn squared distances into spacings of the owner, in place; fill owner and depth."""
    nx, ny, nz = owner.shape
    segments = paths.shape[1] - 1
    half = np.float32(0.5)
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                number = segment[i, j, k]
                d = np.float32(NOWHERE)
                if number >= 0:
                    n, s = number // segments, number % segments
                    p, q = paths[n, s], paths[n, s + 1]
                    ux, uy, uz = q[0] - p[0], q[1] - p[1], q[2] - p[2]
                    wx = np.float32(i) + half - p[0]
                    wy = np.float32(j) + half - p[1]
                    wz = np.float32(k) + half - p[2]
                    a = (wx * ux + wy * uy + wz * uz) / (ux * ux + uy * uy + uz * uz)
                    a = min(max(a, np.float32(0.0)), np.float32(1.0))
                    at = spacing[n, s] + a * (spacing[n, s + 1] - spacing[n, s])
                    d = np.sqrt(distance[i, j, k]) / at
                    owner[i, j, k] = n + 1
                    depth[i, j, k] = (np.float32(s) + a) / np.float32(segments)
                distance[i, j, k] = d


@numba.njit(cache=True)
def _paint_ellipsoid(neighbour, owner, centre, axes):  # type: ignore[no-untyped-def]
    """Set ``neighbour`` to 1 inside |axes (x - centre)| <= 1 where no column owns the voxel."""
    nx, ny, nz = owner.shape
    for i in range(nx):
        x = i + 0.5 - centre[0]
        for j in range(ny):
            y = j + 0.5 - centre[1]
            for k in range(nz):
                z = k + 0.5 - centre[2]
                a = axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z
                b = axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z
                c = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z
                if a * a + b * b + c * c <= 1.0 and owner[i, j, k] == 0:
                    neighbour[i, j, k] = 1
