"""Which column a voxel belongs to: cones and disks as instance ids, and fields about bent paths.

Inside a column's frame a point is entry + a e_theta + b e_phi + c e_r. The cone is
0 <= c <= length and a^2 + b^2 <= r(c)^2, where r falls or grows linearly from radius to
taper x radius; the frame's norms and angles carry it into the cube. Paths are in voxels; the centre
of voxel i lies at i + 0.5.
"""

from dataclasses import dataclass

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


REACH = 0.65  # a column at a border owns voxels up to here, in mean distances to neighbours
INNER_REACH = 0.8  # of a column with all six neighbours: no gap between columns stays open
NOWHERE = 2.0  # distance of voxels without an owner
NOBODY = np.uint64(0xFFFFFFFFFFFFFFFF)


@dataclass(frozen=True)
class ColumnFields:
    """For each voxel the nearest column's axis and the place beside it; all (X, Y, Z)."""

    owner: np.ndarray  # uint16: 0 outside of sheets, else k + 1 of the nearest path k, in gaps too
    distance: np.ndarray
    """float32: distance to the owner's path, in the owner's nearest-neighbour distances there."""
    depth: np.ndarray  # float32: place along the owner's path, 0 proximal to 1 distal
    neighbour: np.ndarray  # uint8: 1 in a neighbouring neuropil without columns

    def instances(self, radius: float) -> np.ndarray:
        """Return uint16 (X, Y, Z): the owner up to ``radius`` spacings of its path, 0 elsewhere."""
        return np.where(self.distance <= np.float32(radius), self.owner, np.uint16(0))


def paint_fields(
    paths: np.ndarray,
    spacing: np.ndarray,
    neighbours: np.ndarray,
    shape: tuple[int, ...],
    neuropil: np.ndarray,
) -> ColumnFields:
    """Return the fields of (X, Y, Z) voxels about columns, as ``sheet.Columns`` describes them.

    A voxel belongs to the path whose nearest segment is nearest in voxels (ties: the first), of
    the segments within whose reach it lies; it must not lie beyond the path's ends, which are cut
    square. Without an owner the distance is 2 and the depth 0. Raises UserError for more than 65535
    columns.
    """
    check_count(len(paths), "columns")
    paths, spacing = paths.astype(np.float32), spacing.astype(np.float32)
    nearest = np.full(shape, NOBODY, dtype=np.uint64)
    _paint_segments(nearest, paths, _overlaps(paths), _reaches(paths, spacing, neighbours))
    # of each segment the start, the step over its square, the spacing there and its change
    steps = np.diff(paths, axis=1)
    steps /= np.maximum(np.sum(steps**2, axis=2, keepdims=True), np.float32(1e-12))
    spacings = np.stack([spacing[:, :-1], np.diff(spacing, axis=1)], axis=2)
    segments = np.concatenate([paths[:, :-1], steps, spacings], axis=2).reshape(-1, 8)
    owner = np.empty(shape, dtype=np.uint16)
    distance, depth = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    _normalise(nearest, segments, paths.shape[1] - 1, owner, distance, depth)
    neighbour = np.zeros(shape, dtype=np.uint8)
    for centre, *axes in neuropil.astype(np.float64):
        turned = axes / np.linalg.norm(axes, axis=1, keepdims=True) ** 2
        y, z = np.ogrid[: shape[1], : shape[2]]
        y, z = y + 0.5 - centre[1], z + 0.5 - centre[2]
        for i, plane in enumerate(neighbour):
            x = i + 0.5 - centre[0]
            squares = sum((a * x + b * y + c * z) ** 2 for a, b, c in turned)
            plane[(squares <= 1.0) & (owner[i] == 0)] = 1
    return ColumnFields(owner, distance, depth, neighbour)


def _reaches(paths: np.ndarray, spacing: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """Return (N, D) float32: up to which distance, in voxels, each node's column owns voxels.

    A segment takes the larger of its nodes' reaches.
    """
    first, second = neighbours.T
    steps = np.sqrt(np.sum((paths[first] - paths[second]).astype(np.float64) ** 2, axis=2))
    degree = np.bincount(neighbours.ravel(), minlength=len(paths))
    total = np.zeros(spacing.shape)
    for end in (first, second):
        np.add.at(total, end, steps)
    lonely = (degree == 0)[:, None]
    mean = np.where(lonely, spacing, total / np.maximum(degree, 1)[:, None])
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


@numba.njit(cache=True, error_model="numpy")  # a check for division by zero does not vectorise
def _paint_segments(nearest, paths, overlaps, radii):  # type: ignore[no-untyped-def]
    """Lower ``nearest`` (X, Y, Z) uint64 to the squared distance and the segment's number.

    The bits of the distance, a float32 that is not negative, are in order as the upper half of the
    word, the number is the lower half: the least word is that of the nearest, then of the first.
    Rows along z are cut where they enter and leave the segment's cylinder.
    """
    nx, ny, nz = nearest.shape
    last = paths.shape[1] - 2
    zero, one, half, tiny = np.float32(0.0), np.float32(1.0), np.float32(0.5), np.float32(1e-6)
    for n in range(len(paths)):
        for s in range(last + 1):
            px, py, pz = paths[n, s]
            ux, uy, uz = paths[n, s + 1] - paths[n, s]
            length = np.sqrt(ux * ux + uy * uy + uz * uz)
            ux, uy, uz = ux / length, uy / length, uz / length
            r = max(radii[n, s], radii[n, s + 1])
            low, high = -r * overlaps[n, s], length + r * overlaps[n, s + 1]
            tx = r * np.sqrt(max(zero, one - ux * ux))
            ty = r * np.sqrt(max(zero, one - uy * uy))
            i0 = max(int(np.ceil(px + min(low * ux, high * ux) - tx - half)), 0)
            i1 = min(int(np.floor(px + max(low * ux, high * ux) + tx - half)) + 1, nx)
            j0 = max(int(np.ceil(py + min(low * uy, high * uy) - ty - half)), 0)
            j1 = min(int(np.floor(py + max(low * uy, high * uy) + ty - half)) + 1, ny)
            across = max(one - uz * uz, tiny)
            inverse, steep = one / across, abs(uz) > tiny
            slope = one / uz if steep else zero
            number = np.uint64(n * (last + 1) + s)
            for i in range(i0, i1):
                wx = np.float32(i) + half - px
                for j in range(j0, j1):
                    wy = np.float32(j) + half - py
                    a0 = wx * ux + wy * uy
                    c = wx * wx + wy * wy - a0 * a0 - r * r
                    root = a0 * a0 * uz * uz - across * c
                    if root < zero or (not steep and (a0 < low or a0 > high)):
                        continue
                    root = np.sqrt(root)
                    z0, z1 = (a0 * uz - root) * inverse, (a0 * uz + root) * inverse
                    if steep:
                        e0, e1 = (low - a0) * slope, (high - a0) * slope
                        z0, z1 = max(z0, min(e0, e1)), min(z1, max(e0, e1))
                    k0 = int(np.ceil(max(z0 + pz - half, zero)))
                    k1 = int(np.floor(min(z1 + pz + half, np.float32(nz))))
                    if k0 >= k1:
                        continue
                    row, start = nearest[i, j][k0:k1], np.float32(k0) + half - pz
                    for k in range(row.size):
                        wz = np.float32(np.int32(k)) + start
                        a = min(max(a0 + uz * wz, zero), length)
                        dx, dy, dz = wx - a * ux, wy - a * uy, wz - a * uz
                        d = np.float32(dx * dx + dy * dy + dz * dz)
                        word = (np.uint64(d.view(np.uint32)) << np.uint64(32)) | number
                        row[k] = min(row[k], word)


@numba.njit(cache=True, error_model="numpy")
def _normalise(nearest, segments, parts, owner, distance, depth):  # type: ignore[no-untyped-def]
    """Turn ``nearest`` into the owner, the distance in its spacings, and the depth."""
    nx, ny, nz = owner.shape
    zero, one, half = np.float32(0.0), np.float32(1.0), np.float32(0.5)
    parts, part = np.uint32(parts), np.float32(1.0 / parts)
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                word = nearest[i, j, k]
                if word == NOBODY:
                    owner[i, j, k], distance[i, j, k], depth[i, j, k] = 0, NOWHERE, zero
                    continue
                number = np.uint32(word)
                px, py, pz, ux, uy, uz, at, change = segments[number]
                a = (np.float32(i) + half - px) * ux + (np.float32(j) + half - py) * uy
                a = min(max(a + (np.float32(k) + half - pz) * uz, zero), one)
                squared = np.uint32(word >> np.uint64(32)).view(np.float32)
                n = np.uint32(number // parts)
                owner[i, j, k] = n + 1
                distance[i, j, k] = np.sqrt(squared) / (at + a * change)
                depth[i, j, k] = min((np.float32(number - n * parts) + a) * part, one)
