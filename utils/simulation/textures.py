"""Compiled kernels of a stain's background: noise on coarse grids, cells of random points, balls.

A grid's node n lies at voxel n x step along each axis.
"""

from __future__ import annotations

import numba
import numpy as np

CELL_NODES = 4
"""Nodes along the mean width of a cell; steps are never below ``FINEST`` voxels."""
FINEST = 2.0
JITTER = 0.9
"""A cell's point lies at random within this share of the cell's width."""


def value_noise(shape: tuple[int, ...], period: float, rng: np.random.Generator) -> np.ndarray:
    """Return (X, Y, Z) float32 noise of mean 0: normals every ``period`` voxels, smooth between."""
    nodes = [int((n - 1) / period) + 2 for n in shape]
    return upsampled(rng.standard_normal(nodes, dtype=np.float32), period, shape, smooth=True)


def cell_noise(
    shape: tuple[int, ...], period: float, kind: str, rng: np.random.Generator
) -> np.ndarray:
    """Return (X, Y, Z) float32 noise of mean 0 and variance 1 from one random point in each cell.

    Args:
        shape: voxels.
        period: width of the cubic cells that hold a point each, in voxels.
        kind: "worley": distance to the nearest point (Worley, SIGGRAPH 1996); "voronoi": a random
            number of that point.
        rng: source of the points and their numbers.
    """
    step = max(FINEST, period / CELL_NODES)
    cells = [int(n / period) + 4 for n in shape]
    points = rng.random((*cells, 3), dtype=np.float32) * np.float32(JITTER)
    numbers = rng.standard_normal(cells, dtype=np.float32)
    nodes = np.empty([int((n - 1) / step) + 2 for n in shape], dtype=np.float32)
    _cells(points, numbers, step / period, kind == "worley", nodes)
    mean, sd = nodes.mean(dtype=float), max(nodes.std(dtype=float), 1e-6)
    return upsampled(((nodes - mean) / sd).astype(np.float32), step, shape, smooth=False)


@numba.njit(cache=True)
def _cells(points, numbers, step, distances, nodes):  # type: ignore[no-untyped-def]
    """Fill ``nodes`` from the 27 cells about each; lengths are in cells."""
    for i in range(nodes.shape[0]):
        for j in range(nodes.shape[1]):
            for k in range(nodes.shape[2]):
                x, y, z = np.float32(i * step), np.float32(j * step), np.float32(k * step)
                nearest = np.float32(99.0)
                number = np.float32(0.0)
                for a in range(int(x), int(x) + 3):  # cell a holds points of a - 1 .. a
                    for b in range(int(y), int(y) + 3):
                        for c in range(int(z), int(z) + 3):
                            p = points[a, b, c]
                            u = np.float32(a - 1) + p[0] - x
                            v = np.float32(b - 1) + p[1] - y
                            w = np.float32(c - 1) + p[2] - z
                            d = u * u + v * v + w * w
                            if d < nearest:
                                nearest, number = d, numbers[a, b, c]
                nodes[i, j, k] = np.sqrt(nearest) if distances else number


def upsampled(grid: np.ndarray, step: float, shape: tuple[int, ...], *, smooth: bool) -> np.ndarray:
    """Interpolate ``grid`` (A, B, C) float32 to ``shape``: trilinear, or with level nodes (smooth).

    Smooth weights are 3 t^2 - 2 t^3. Beyond the last node its value goes on.
    """
    places = []
    for n, nodes in zip(shape, grid.shape, strict=True):
        at = np.arange(n) / step
        low = np.minimum(at.astype(np.int64), nodes - 1)
        t = np.minimum(at - low, 1.0)
        t = t * t * (3.0 - 2.0 * t) if smooth else t
        places += [low, np.minimum(low + 1, nodes - 1), t.astype(np.float32)]
    out = np.empty(shape, dtype=np.float32)
    _upsample(grid, tuple(places), out)
    return out


@numba.njit(cache=True)
def _upsample(grid, places, out):  # type: ignore[no-untyped-def]
    """Per plane the grid between two of its planes, per row between two of its rows."""
    x0, x1, tx, y0, y1, ty, z0, z1, tz = places
    plane, row = np.empty_like(grid[0]), np.empty_like(grid[0, 0])
    for i in range(out.shape[0]):
        for b in range(plane.shape[0]):
            for c in range(plane.shape[1]):
                low = grid[x0[i], b, c]
                plane[b, c] = low + tx[i] * (grid[x1[i], b, c] - low)
        for j in range(out.shape[1]):
            for c in range(row.size):
                row[c] = plane[y0[j], c] + ty[j] * (plane[y1[j], c] - plane[y0[j], c])
            for k in range(out.shape[2]):
                low = row[z0[k]]
                out[i, j, k] = low + tz[k] * (row[z1[k]] - low)


@numba.njit(cache=True)
def paint_balls(image, owner, centres, radii, values, hollow, outside_only):  # type: ignore[no-untyped-def]
    """Paint balls into ``image``, the later over the earlier, with edges one voxel wide.

    Args:
        image: (X, Y, Z) float32, changed in place.
        owner: (X, Y, Z) uint16, 0 outside of the sheets.
        centres: (N, 3) float32, voxels; they may lie outside of the image.
        radii: (N,) float32, voxels.
        values: (N,) float32.
        hollow: how much of the value is missing within 0.6 radii of the centre, 0 to 1.
        outside_only: leave voxels with an owner as they are.
    """
    nx, ny, nz = image.shape
    half, one = np.float32(0.5), np.float32(1.0)
    for n in range(len(centres)):
        x, y, z = centres[n]
        reach = radii[n] + half
        for i in range(max(int(x - reach), 0), min(int(x + reach) + 2, nx)):
            for j in range(max(int(y - reach), 0), min(int(y + reach) + 2, ny)):
                aside = (np.float32(i) - x) ** 2 + (np.float32(j) - y) ** 2
                if aside > reach * reach:
                    continue
                for k in range(max(int(z - reach), 0), min(int(z + reach) + 2, nz)):
                    distance = np.sqrt(aside + (np.float32(k) - z) ** 2)
                    weight = min(reach - distance, one)
                    if weight > 0 and not (outside_only and owner[i, j, k]):
                        value = values[n]
                        if distance < np.float32(0.6) * radii[n]:
                            value *= one - hollow
                        image[i, j, k] += weight * (value - image[i, j, k])
