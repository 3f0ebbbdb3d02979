"""Compiled kernels of a stain's background: noise on coarse grids, and balls.

A grid's node n lies at voxel n x step along each axis. Kernels of stain.py hold a compiled copy of
the grids' functions: touch that file after a change here.
"""

import numba
import numpy as np

Grid = tuple[np.ndarray, tuple[np.ndarray, ...]]
"""Nodes (A, B, C) float32, and for each axis, for each voxel: both nodes (n,) uint32 beside it and
the weight (n,) float32 of the second."""


def noise_grid(shape: tuple[int, ...], period: float, rng: np.random.Generator) -> Grid:
    """Return the grid of noise of mean 0: normals every ``period`` voxels, smooth between."""
    nodes = [int((n - 1) / period) + 2 for n in shape]
    return grid_of(rng.standard_normal(nodes, dtype=np.float32), period, shape)


def grid_of(nodes: np.ndarray, step: float, shape: tuple[int, ...]) -> Grid:
    """Return ``nodes`` (A, B, C) with weights 3 t^2 - 2 t^3; beyond the last its value goes on."""
    places = []
    for n, size in zip(shape, nodes.shape, strict=True):
        at = np.arange(n) / step
        low = np.minimum(at.astype(np.uint32), np.uint32(size - 1))
        t = np.minimum(at - low, 1.0)
        weight = (t * t * (3.0 - 2.0 * t)).astype(np.float32)
        places += [low, np.minimum(low + np.uint32(1), np.uint32(size - 1)), weight]
    return nodes, tuple(places)


@numba.njit(cache=True)
def add_grid(image, grid):  # type: ignore[no-untyped-def]
    """Add a grid to ``image`` (X, Y, Z) float32, in place."""
    plane, row = np.empty_like(grid[0][0]), np.empty(image.shape[2], dtype=np.float32)
    for i in range(image.shape[0]):
        plane_of(grid, i, plane)
        for j in range(image.shape[1]):
            row_of(grid, plane, j, row)
            out = image[i, j]
            for k in range(row.size):
                out[k] += row[k]


@numba.njit
def plane_of(grid, i, plane):  # type: ignore[no-untyped-def]
    """Fill ``plane`` (B, C) float32 with a grid's nodes at voxel ``i`` of the first axis."""
    nodes, places = grid
    x0, x1, tx = places[0], places[1], places[2]
    for b in range(plane.shape[0]):
        for c in range(plane.shape[1]):
            low = nodes[x0[i], b, c]
            plane[b, c] = low + tx[i] * (nodes[x1[i], b, c] - low)


@numba.njit
def row_of(grid, plane, j, row):  # type: ignore[no-untyped-def]
    """Fill ``row`` (Z,) float32 from :func:`plane_of` at voxel ``j`` of the second axis."""
    _, _, _, y0, y1, ty, z0, z1, tz = grid[1]
    first, second, t = plane[y0[j]], plane[y1[j]], ty[j]
    nodes = np.empty(first.size, dtype=np.float32)
    for c in range(first.size):
        nodes[c] = first[c] + t * (second[c] - first[c])
    for k in range(row.size):
        low = nodes[z0[k]]
        row[k] = low + tz[k] * (nodes[z1[k]] - low)


@numba.njit(cache=True)
def paint_balls(image, owner, centres, radii, values, hollow, outside_only):  # type: ignore[no-untyped-def]
    """Paint balls into ``image``, the later over the earlier, with edges one voxel wide.

    ``image`` (X, Y, Z), ``centres`` (N, 3) and ``radii`` (N,) in voxels, and ``values`` (N,) are
    float32. ``hollow`` is how much of the value is missing within 0.6 radii of the centre, 0 to 1;
    with ``outside_only`` voxels with an ``owner`` stay as they are.
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
