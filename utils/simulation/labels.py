"""Exact labels as instance ids: cones about column axes (3D), disks about column centres (2D).

Inside a column's frame a point is entry + a e_theta + b e_phi + c e_r. The cone is
0 <= c <= length and a^2 + b^2 <= r(c)^2, where r falls or grows linearly from radius to
taper x radius; the frame's norms and angles carry it into the cube.
"""

import numba
import numpy as np

from utils.errors import UserError


def cone_volume(radius: float, length: float, taper: float, frames: np.ndarray) -> np.ndarray:
    """Return the exact volumes (...) of cones in cube units.

    pi r^2 h (1 + f + f^2) / 3 in the frame, times the absolute determinants of the frames
    (..., 3, 3), whose columns are e_theta, e_phi, e_r; of orthogonal ones the norms' products.
    """
    in_frame = np.pi * radius**2 * length * (1.0 + taper + taper**2) / 3.0
    return np.abs(in_frame * np.linalg.det(frames))


def frame_inverses(e_theta: np.ndarray, e_phi: np.ndarray, e_r: np.ndarray) -> np.ndarray:
    """Return the (N, 3, 3) float32 inverses of the frames with columns e_theta, e_phi, e_r.

    Row vectors of the inverse are cross products over the determinant (Cramer), so that the bits
    do not depend on a linear algebra library.
    """
    t, p, r = (v.astype(np.float64) for v in (e_theta, e_phi, e_r))
    normals = np.stack([np.cross(p, r), np.cross(r, t), np.cross(t, p)], axis=1)
    determinant = np.sum(t * normals[:, 0], axis=1)
    return (normals / determinant[:, None, None]).astype(np.float32)


def paint_cones(
    shape: tuple[int, int, int],
    entry_points: np.ndarray,
    frames: tuple[np.ndarray, np.ndarray, np.ndarray],
    length: float,
    radius: float,
    taper: float,
) -> np.ndarray:
    """Return the instance ids (X, Y, Z) uint16 of N cones: k + 1 inside cone k, 0 outside.

    A voxel belongs to a cone that holds its centre; of several, to the one whose axis is nearer,
    measured as sqrt(a^2 + b^2) in the columns' frames (rule for duplicates; ties: the first).
    ``entry_points`` and each of ``frames`` (e_r, e_theta, e_phi) are (N, 3) float32; ``length``
    and ``radius``, at the entry point, are in norms of these; ``taper`` is outer radius / radius.
    Raises UserError for more than 65535 cones.
    """
    check_count(len(entry_points), "cones")
    e_r, e_theta, e_phi = frames
    instances = np.zeros(shape, dtype=np.uint16)
    ends = entry_points + length * e_r
    reach = radius * max(1.0, taper) * np.sqrt(e_theta**2 + e_phi**2)
    # the voxels [lower, upper) that hold each cone
    lower = np.floor((np.minimum(entry_points, ends) - reach) * np.array(shape) - 1.0)
    upper = np.ceil((np.maximum(entry_points, ends) + reach) * np.array(shape) + 1.0)
    lower, upper = (np.clip(box, 0, shape).astype(np.int64) for box in (lower, upper))
    x, y, z = (((np.arange(n) + 0.5) / n).astype(np.float32) for n in shape)
    inverses = frame_inverses(e_theta, e_phi, e_r)
    size = np.array([length, radius, radius * (taper - 1.0) / length], dtype=np.float32)
    _paint_cones(instances, x, y, z, entry_points, inverses, lower, upper, size)
    return instances


def check_count(count: int, what: str) -> None:
    """Raise UserError for more instances than have an id."""
    if count > np.iinfo(np.uint16).max:
        raise UserError(f"{count} {what} do not fit 16-bit instance ids (at most 65535)")


@numba.njit(cache=True)
def _paint_cones(instances, x, y, z, entry_points, inverses, lower, upper, size):  # type: ignore[no-untyped-def]
    length, radius, slope = size[0], size[1], size[2]
    zero = np.float32(0.0)
    for n in range(len(entry_points)):
        p = entry_points[n]
        m = inverses[n]
        for i in range(lower[n, 0], upper[n, 0]):
            dx = x[i] - p[0]
            for j in range(lower[n, 1], upper[n, 1]):
                dy = y[j] - p[1]
                a0 = m[0, 0] * dx + m[0, 1] * dy
                b0 = m[1, 0] * dx + m[1, 1] * dy
                c0 = m[2, 0] * dx + m[2, 1] * dy
                for k in range(lower[n, 2], upper[n, 2]):
                    dz = z[k] - p[2]
                    c = c0 + m[2, 2] * dz
                    if c < zero or c > length:
                        continue
                    a = a0 + m[0, 2] * dz
                    b = b0 + m[1, 2] * dz
                    d = a * a + b * b
                    r = radius + slope * c
                    if d > r * r:
                        continue
                    other = instances[i, j, k]
                    if other:
                        q = entry_points[other - 1]
                        w = inverses[other - 1]
                        ex, ey, ez = x[i] - q[0], y[j] - q[1], z[k] - q[2]
                        oa = w[0, 0] * ex + w[0, 1] * ey + w[0, 2] * ez
                        ob = w[1, 0] * ex + w[1, 1] * ey + w[1, 2] * ez
                        if oa * oa + ob * ob <= d:
                            continue
                    instances[i, j, k] = n + 1


def paint_disks(shape: tuple[int, int], centres: np.ndarray, radius: float) -> np.ndarray:
    """Return the instance ids (X, Y) uint16 of N disks: k + 1 inside disk k, 0 outside.

    A pixel belongs to a disk that holds its centre, (i + 0.5, j + 0.5); of several, to the one
    whose centre is nearer (rule for duplicates; ties: the first). ``centres`` (N, 2), which may lie
    outside, and ``radius`` are in pixels. Raises UserError for more than 65535 disks.
    """
    check_count(len(centres), "disks")
    instances = np.zeros(shape, dtype=np.uint16)
    _paint_disks(instances, centres.astype(np.float64), float(radius))
    return instances


@numba.njit(cache=True)
def _paint_disks(instances, centres, radius):  # type: ignore[no-untyped-def]
    nx, ny = instances.shape
    for n in range(len(centres)):
        x, y = centres[n, 0], centres[n, 1]
        for i in range(max(int(x - radius), 0), min(int(x + radius) + 1, nx)):
            dx = i + 0.5 - x
            for j in range(max(int(y - radius), 0), min(int(y + radius) + 1, ny)):
                dy = j + 0.5 - y
                d = dx * dx + dy * dy
                if d > radius * radius:
                    continue
                other = instances[i, j]
                if other:
                    ex = i + 0.5 - centres[other - 1, 0]
                    ey = j + 0.5 - centres[other - 1, 1]
                    if ex * ex + ey * ey <= d:
                        continue
                instances[i, j] = n + 1
