"""The fields of columns that are paths: where each voxel stands; it goes to the nearest path.

Positions are in voxels; the centre of voxel i lies at i + 0.5.
"""

from dataclasses import dataclass

import numba
import numpy as np

from utils.simulation.labels import check_count

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
    owner = np.empty(shape, dtype=np.uint16)
    distance, depth = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    _normalise(nearest, _segments(paths, spacing), paths.shape[1] - 1, owner, distance, depth)
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


def _segments(paths: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return (N (D - 1), 8) float32: start, step over its square, spacing there and its change."""
    steps = np.diff(paths, axis=1)
    steps /= np.maximum(np.sum(steps**2, axis=2, keepdims=True), np.float32(1e-12))
    spacings = np.stack([spacing[:, :-1], np.diff(spacing, axis=1)], axis=2)
    return np.concatenate([paths[:, :-1], steps, spacings], axis=2).reshape(-1, 8)


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
