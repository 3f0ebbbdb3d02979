"""Columns one by one: from a probability map or a mask to instances, each with its own number.

Basins of the map are flooded from the top; two of them stay apart where both were large enough
before they met. Then what does not look like its neighbours is mended: pieces of one column that
lie behind each other are joined, and instances that are as wide as two columns are cut. Arrays are
(X, Y, Z); lengths are micrometres, or voxels where nobody knows their size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy import ndimage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import (
    breadth_first_order,
    connected_components,
    minimum_spanning_tree,
)
from scipy.spatial import cKDTree

LEVELS = 4095
"""Heights that are told apart while basins are flooded."""
LEAST = 0.12
"""Share of a column's volume that a basin must have to stay apart, or be one at the border."""
FIRST, ROUNDS, MANY = 8.0, 4, 200_000
"""Voxels of a basin in the first of so many attempts to settle what volume columns have, and voxels
of the foreground that are enough for that."""
NEAR = 9
"""Instances with which one is compared, itself among them."""
BEHIND = 1.5
"""Offset across the axis, in radii, up to which two pieces lie behind each other."""
JOINED, LONG = 2.0, 2.2
"""Volume and length below which pieces may be joined, in those of their neighbours."""
WIDE, LARGE, SIDE = 3.0, 1.35, 0.35
"""Variance across the axis and volume from which an instance is cut, and the least volume of either
part, all in those of its neighbours."""
SMOOTHED = 0.7
"""Standard deviation in voxels of the blur of distances, which come in steps."""
FRAGMENT = 0.25
"""Volume below which an instance within the stack is none, in that of its neighbours."""
SHAPE, SHIFTED, SHAPED, FEWEST = 2.0, 0.7, 13, 5
"""Odds by which a column's extent follows its neighbours' shape, share of the way to their level,
how many they are, and instances of a stack below which none is reshaped."""
AXES, STIFF = 19, 0.1
"""Instances to which a column's axis is fitted, and how much their turning is held back.

These constants were chosen on 16 default volumes, and looked at on a real eye's cones."""


@dataclass(frozen=True)
class Moments:
    """Size, place and shape of N instances; lengths as in the module."""

    count: np.ndarray
    """(N,) int64, voxels."""
    centre: np.ndarray
    """(N, 3) float64."""
    covariance: np.ndarray
    """(N, 3, 3) float64."""

    @classmethod
    def of(cls, labels: np.ndarray, steps: tuple[float, ...]) -> Moments:
        """Return those of the instances 1..N of ``labels`` (X, Y, Z)."""
        return cls.of_sums(sums_of(labels, int(labels.max(initial=0)), 0), steps)

    @classmethod
    def of_sums(cls, sums: np.ndarray, steps: tuple[float, ...]) -> Moments:
        """Return those of (N, 10) sums of 1, x, y, z, xx, xy, xz, yy, yz, zz in voxels."""
        mean = sums[:, 1:] / np.maximum(sums[:, :1], 1)
        square = mean[:, [[3, 4, 5], [4, 6, 7], [5, 7, 8]]]
        covariance = square - mean[:, :3, None] * mean[:, None, :3]
        count = np.rint(sums[:, 0]).astype(np.int64)
        return cls(count, mean[:, :3] * steps, covariance * np.outer(steps, steps))


@dataclass(frozen=True)
class Usual:
    """What columns are like around each of N instances; lengths as in the module."""

    axis: np.ndarray
    """(N, 3), unit, either way round."""
    count: np.ndarray
    """(N,), voxels."""
    variance: np.ndarray
    """(N,), across the axis in one direction: a quarter of the radius squared."""
    widest: np.ndarray
    """(N,), the instance's own greatest variance across the axis."""
    across: np.ndarray
    """(N, 3), the direction in which it has that."""

    @classmethod
    def around(cls, moments: Moments) -> Usual:
        """Return medians over the :data:`NEAR` instances around each that are no fragments."""
        typical = typical_size(moments.count)
        whole = np.flatnonzero(moments.count >= 0.4 * typical)
        near = _nearest(moments.centre[whole], moments.centre, NEAR)
        near = whole[near]
        own = np.linalg.eigh(moments.covariance)[1][:, :, 2]
        weight = np.minimum(moments.count, typical)[near].astype(np.float64)
        axis = np.linalg.eigh(np.einsum("nk,nka,nkb->nab", weight, own[near], own[near]))[1]
        axis = axis[:, :, 2]
        flat = np.eye(3) - axis[:, :, None] * axis[:, None, :]
        variances, directions = np.linalg.eigh(flat @ moments.covariance @ flat)
        variance = np.sqrt(np.maximum(variances[:, 1] * variances[:, 2], 0))
        return cls(
            axis,
            np.median(moments.count[near], axis=1),
            np.median(variance[near], axis=1),
            variances[:, 2],
            directions[:, :, 2],
        )


def find_instances(
    height: np.ndarray, foreground: np.ndarray, steps: tuple[float, ...]
) -> np.ndarray:
    """Return labels (X, Y, Z) int32, 0 for background and 1..N.

    Args:
        height: (X, Y, Z) float, greatest on the columns' axes: a probability map, or
            :func:`depth` of a mask.
        foreground: (X, Y, Z) bool, where columns are; elsewhere ``height`` does not matter.
        steps: edge of a voxel along x, y, z.
    """
    place = np.full(tuple(n + 2 for n in foreground.shape), -1, np.int32)
    inner = place[1:-1, 1:-1, 1:-1]
    values = height[foreground]
    if len(values) == 0:
        return np.zeros(foreground.shape, np.int32)
    inner[foreground] = np.arange(len(values), dtype=np.int32)
    where = np.flatnonzero(place.ravel() >= 0).astype(np.int32)
    low, high = float(values.min()), float(values.max())
    levels = ((values - low) * (LEVELS / max(high - low, 1e-12))).astype(np.uint16)
    del values
    order = np.argsort(levels, kind="stable")[::-1].astype(np.int32)
    flood = (levels, _neighbours(place, where))
    # What volume columns have is settled on the middle of the foreground, along x.
    aside = max(0, len(order) - MANY) // 2
    some = order[(order >= aside) & (order < len(order) - aside)]
    least = FIRST
    for _ in range(ROUNDS):
        roots = _flood(some, *flood, least)
        sizes = np.bincount(roots[some])
        wanted = LEAST * typical_size(sizes[sizes > 0])
        settled = wanted <= 1.1 * least
        if settled:
            break
        least = wanted
    if not settled or len(some) < len(order):
        roots = _flood(order, *flood, least)
    del order, levels, flood
    sizes = np.bincount(roots)
    large = sizes >= LEAST * typical_size(sizes[sizes > 0])
    labels = np.where(large, np.cumsum(large), 0).astype(np.int32)[roots]
    place.fill(0)
    place.ravel()[where] = labels
    where = where[labels > 0]
    sums = sums_of(place, int(labels.max()), 0)
    for _ in range(2):
        sums = _cut(place, where, sums, steps)
    into, moments = _join(sums, steps)
    share = moments.count / Usual.around(moments).count
    faces = np.bincount(into, on_faces(inner, len(into))) > 0
    kept = share >= np.where(faces, LEAST, FRAGMENT)
    renumber(inner, np.where(kept, np.cumsum(kept), 0)[into])
    return inner


def on_faces(labels: np.ndarray, count: int) -> np.ndarray:
    """Return which (count,) of the labels 1..count are on the outermost planes."""
    seen = np.zeros(count + 1, bool)
    for axis in range(labels.ndim):
        seen[np.moveaxis(labels, axis, 0)[[0, -1]]] = True
    return seen[1:]


def typical_size(sizes: np.ndarray) -> int:
    """Return the size of the instance that half of all voxels are in, or in a smaller one."""
    ordered = np.sort(sizes)
    cumulated = np.cumsum(ordered)
    return int(ordered[np.searchsorted(cumulated, cumulated[-1] / 2)])


def depth(mask: np.ndarray, steps: tuple[float, ...]) -> np.ndarray:
    """Return how deep inside a mask (X, Y, Z) each voxel lies, slightly smoothed, float32.

    The nearest voxel outside touches the mask, so only those are asked: columns fill little.
    """
    scale = np.array(steps)
    shell = np.argwhere(ndimage.binary_dilation(mask) & ~mask) * scale
    inside = np.zeros(mask.shape, np.float32)
    if len(shell):
        inside[mask] = cKDTree(shell).query(np.argwhere(mask) * scale)[0]
    return ndimage.gaussian_filter(inside, SMOOTHED)


def reshape(
    labels: np.ndarray, probabilities: np.ndarray, least: float, steps: tuple[float, ...]
) -> np.ndarray:
    """Return ``labels`` (X, Y, Z) with each column's extent settled by its neighbours' as well.

    Around each instance's axis stands a cylinder as long and as large as its neighbours, whose
    place along the axis is theirs. Within it a column reaches down to lower ``probabilities``,
    elsewhere only to higher ones: odds that are :data:`SHAPE` times those of ``least``. Instances
    of which nothing stays are gone, and the others are numbered 1..N in the same order.
    """
    moments = Moments.of(labels, steps)
    if len(moments.count) < FEWEST:
        return labels
    axis, centre = smooth_axes(moments), moments.centre
    whole = ~on_faces(labels, len(axis))
    near = _nearest(centre, centre, SHAPED)
    weight = np.minimum(moments.count / typical_size(moments.count), 1) * np.where(whole, 1, 0.2)
    variance = np.einsum("na,nab,nb->n", axis, moments.covariance, axis)
    length, count = (
        _weighted_median(values[near], weight[near])
        for values in (np.sqrt(12 * variance), moments.count)
    )
    # Along the mean of both axes all centres of a spherical sheet are level.
    way = centre[near] - centre[:, None]
    level = np.sum(way * (axis[near] + axis[:, None]) / 2, axis=2, keepdims=True)
    centre = centre + SHIFTED * _smooth(level, centre, near, weight) * axis
    radius = np.sqrt(count * np.prod(steps) / (np.pi * np.maximum(length, 1e-9)))
    shape = _cylinders(labels.shape, centre, axis, length, radius, np.array(steps))
    odds = least / max(1 - least, 1e-9)
    low, high = (o / (1 + o) for o in (odds / SHAPE, odds * SHAPE))
    stays = _settle(shape.ravel(), labels.ravel(), probabilities.ravel(), low, high, len(axis))
    if not stays.all():
        renumber(shape, np.cumsum(stays))
    return shape


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the medians (N,) of ``values`` (N, K), which count as ``weights`` (N, K)."""
    order = np.argsort(values, axis=1)
    values, weights = (np.take_along_axis(x, order, axis=1) for x in (values, weights))
    total = np.cumsum(weights, axis=1)
    middle = (total >= total[:, -1:] / 2).argmax(axis=1)
    return values[np.arange(len(values)), middle]


def _cut(
    labels: np.ndarray, where: np.ndarray, sums: np.ndarray, steps: tuple[float, ...]
) -> np.ndarray:
    """Cut instances that are too wide and too large in two, across where they are widest.

    ``labels`` change in place; ``where`` (V,) are their rows that are not 0, and ``sums`` (N, 10)
    those of :func:`sums_of`, which are returned as they then are.
    """
    moments = Moments.of_sums(sums, steps)
    usual = Usual.around(moments)
    wide = (usual.widest > WIDE * usual.variance) & (moments.count > LARGE * usual.count)
    flat, n = labels.ravel(), len(wide)
    inside = where[wide[flat[where] - 1]]
    of = flat[inside] - 1
    away = np.stack(np.unravel_index(inside, labels.shape), axis=1) * steps - moments.centre[of]
    along = np.sum(away * usual.across[of], axis=1)
    middle = np.zeros(n)
    for _ in range(8):  # two means
        beyond = along >= middle[of]
        counts = [np.maximum(np.bincount(of, side, n), 1) for side in (beyond, ~beyond)]
        middle = np.bincount(of, along * beyond, n) / counts[0]
        middle = (middle + np.bincount(of, along * ~beyond, n) / counts[1]) / 2
    cut = wide & (np.minimum(*counts) >= SIDE * usual.count)
    if not cut.any():
        return sums
    other = np.where(cut, n + np.cumsum(cut), np.arange(1, n + 1))
    flat[inside] = np.where(beyond, other[of], of + 1)
    return sums_of(labels, n + int(cut.sum()), 0)


def _join(sums: np.ndarray, steps: tuple[float, ...]) -> tuple[np.ndarray, Moments]:
    """Join pieces that lie behind each other along the axis and are one column together.

    Returns which instance 0..M - 1 each of those with ``sums`` (N, 10) belongs to, (N,), and the
    moments of these.
    """
    moments = Moments.of_sums(sums, steps)
    usual = Usual.around(moments)
    length = np.sqrt(12 * np.einsum("na,nab,nb->n", usual.axis, moments.covariance, usual.axis))
    near = _nearest(moments.centre, moments.centre, NEAR)
    longest = LONG * np.median(length[near], axis=1)
    one, other = np.repeat(np.arange(len(near)), near.shape[1] - 1), near[:, 1:].ravel()
    way = moments.centre[one] - moments.centre[other]
    along = np.abs(np.sum(way * usual.axis[one], axis=1))
    offset = np.sqrt(np.maximum(np.sum(way**2, axis=1) - along**2, 0))
    behind = offset < BEHIND * 2 * np.sqrt(usual.variance[one])
    behind &= along + (length[one] + length[other]) / 2 < longest[one]
    volume = moments.count.astype(np.float64)
    into = np.arange(len(volume))
    pairs = np.flatnonzero(behind)
    for pair in pairs[np.argsort(offset[pairs], kind="stable")]:
        first, second = into[one[pair]], into[other[pair]]
        both = volume[first] + volume[second]
        if first != second and both < JOINED * usual.count[first]:
            into[into == second] = first
            volume[first] = both
    into = np.unique(into, return_inverse=True)[1]
    joined = np.zeros((into.max() + 1, 10))
    np.add.at(joined, into, sums)
    return into, Moments.of_sums(joined, steps)


def smooth_axes(moments: Moments) -> np.ndarray:
    """Return unit axes (N, 3): own principal axes, fitted as a linear field around each.

    The principal axis is the longest, or the shortest where most instances are rather discs than
    rods, as the cones of an eye may be: columns stand across their sheet. Neighbouring columns are
    nearly parallel, and their axes turn evenly along the sheet. An instance counts as its length
    stands out of its width, and as it is whole. Signs agree within a neighbourhood, and as far as
    neighbourhoods reach (:func:`same_way`).
    """
    values, vectors = np.linalg.eigh(moments.covariance)
    flatness, stretch = np.sqrt(np.maximum(values[:, 1:], 0) / np.maximum(values[:, :2], 1e-9)).T
    discs = len(values) >= 5 and np.median(flatness) > np.median(stretch)
    own = same_way(vectors[:, :, 0 if discs else 2], moments.centre)
    if len(own) < 5:
        return own
    stretch = flatness if discs else stretch
    weight = np.minimum(moments.count / np.median(moments.count), 1) ** 2
    weight = weight * np.clip(stretch - 1, 0.02, 1) ** 2
    near = _nearest(moments.centre, moments.centre, AXES)
    axes = own[near]
    axes = axes * np.where(np.einsum("nka,na->nk", axes, own) < 0, -1, 1)[..., None]
    fitted = _smooth(axes, moments.centre, near, weight)
    return fitted / np.linalg.norm(fitted, axis=1, keepdims=True)


def _smooth(
    values: np.ndarray, centres: np.ndarray, near: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Return ``values`` (N, K, C) of those ``near`` each, fitted as a linear field, there: (N, C).

    Args:
        values: (N, K, C).
        centres: (N, 3).
        near: (N, K) rows.
        weight: (N,).
    """
    way = centres[near] - centres[:, None]
    way = way / np.maximum(np.linalg.norm(way, axis=2).max(axis=1), 1e-9)[:, None, None]
    terms = np.concatenate([np.ones((*near.shape, 1)), way], axis=2)
    heavy = weight[near][:, :, None] * terms
    normal = heavy.transpose(0, 2, 1) @ terms
    normal += weight[near].mean(axis=1)[:, None, None] * np.diag([1e-9, *[STIFF] * 3])
    return np.linalg.solve(normal, heavy.transpose(0, 2, 1) @ values)[:, 0]


def same_way(axes: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return ``axes`` (N, 3) with signs such that each agrees with the neighbour it is reached by.

    The whole is turned so that columns spread where they point to: in medulla and eye that is
    distal.
    """
    axes, n = axes.copy(), len(axes)
    near = _nearest(centres, centres, NEAR)
    rows = np.repeat(np.arange(n), near.shape[1])
    likeness = np.abs(np.sum(axes[rows] * axes[near.ravel()], axis=1))
    graph = coo_matrix((2.0 - likeness, (rows, near.ravel())), (n, n))
    tree = minimum_spanning_tree(graph)
    tree = tree + tree.T
    part = connected_components(tree, directed=False)[1]
    for start in np.unique(part, return_index=True)[1]:
        order, before = breadth_first_order(tree, start, directed=False)
        for k in order[1:]:
            axes[k] *= 1.0 if axes[k] @ axes[before[k]] >= 0 else -1.0
    return axes * (-1.0 if spreading(axes, centres) < 0 else 1.0)


def spreading(axes: np.ndarray, centres: np.ndarray) -> float:
    """Return the share of neighbours that spread along their axes, less that of the others."""
    near = _nearest(centres, centres, NEAR)[:, 1:]
    opening = (axes[near] - axes[:, None]) * (centres[near] - centres[:, None])
    return float(np.sign(opening.sum(axis=2)).mean()) if near.size else 0.0


def _nearest(points: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """Return which of ``points`` are nearest to each of ``places``: (N, at most count)."""
    count = min(count, len(points))
    if count == 0:
        return np.zeros((len(places), 0), np.int64)
    return cKDTree(points).query(places, k=count)[1].reshape(len(places), count)


@numba.njit(cache=True)
def _cylinders(shape, centre, axis, length, radius, steps):
    """Return int32 labels k + 1 within cylinder k; of several that of the relatively nearest axis.

    ``centre`` and ``axis`` (N, 3), ``length`` and ``radius`` (N,) in the unit of ``steps`` (3,).
    """
    labels = np.zeros(shape, np.int32)
    best = np.full(shape, np.float32(1))
    low, high = np.empty(3, np.int64), np.empty(3, np.int64)
    for k in range(len(length)):
        for a in range(3):
            half = abs(axis[k, a]) * length[k] / 2 + radius[k]
            low[a] = max(0, int(np.floor((centre[k, a] - half) / steps[a])))
            high[a] = min(shape[a], int(np.ceil((centre[k, a] + half) / steps[a])) + 1)
        for i in range(low[0], high[0]):
            x = i * steps[0] - centre[k, 0]
            for j in range(low[1], high[1]):
                y = j * steps[1] - centre[k, 1]
                for m in range(low[2], high[2]):
                    z = m * steps[2] - centre[k, 2]
                    along = x * axis[k, 0] + y * axis[k, 1] + z * axis[k, 2]
                    away = np.float32((x * x + y * y + z * z - along**2) / radius[k] ** 2)
                    if away < best[i, j, m] and abs(along) <= length[k] / 2:
                        best[i, j, m], labels[i, j, m] = away, k + 1
    return labels


@numba.njit(cache=True)
def _settle(shape, labels, probabilities, low, high, n):
    """Turn cylinders ``shape`` (V,) into labels (V,), and return of which of 1..n something stays.

    A voxel is its label's, or without one its cylinder's, from ``low`` on if both are one, else
    from ``high`` on.
    """
    stays = np.zeros(n, np.bool_)
    for v in range(len(shape)):
        owner = labels[v] if labels[v] > 0 else shape[v]
        if owner > 0:
            if probabilities[v] >= (low if owner == shape[v] else high):
                stays[owner - 1] = True
            else:
                owner = 0
        shape[v] = owner
    return stays


@numba.njit(cache=True)
def sums_of(labels, n, start):
    """Return (n, 10) float64 sums of 1, x, y, z, xx, xy, xz, yy, yz, zz over the voxels of 1..n.

    ``labels`` (X, Y, Z) integer; its first plane has z = ``start``.
    """
    sums = np.zeros((n, 10))
    nx, ny, nz = labels.shape
    count, once, square = 0, 0, 0
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                label = int(labels[i, j, k])  # a run of one along z is added at once
                if label > 0:
                    count, once, square = count + 1, once + k + start, square + (k + start) ** 2
                    if k + 1 == nz or labels[i, j, k + 1] != label:
                        row = sums[label - 1]
                        row[0] += count
                        row[1] += count * i
                        row[2] += count * j
                        row[3] += once
                        row[4] += count * i * i
                        row[5] += count * i * j
                        row[6] += once * i
                        row[7] += count * j * j
                        row[8] += once * j
                        row[9] += square
                        count, once, square = 0, 0, 0
    return sums


@numba.njit(cache=True)
def renumber(labels, numbers):
    """Turn ``labels`` (X, Y, Z) 1..N in place into ``numbers`` (N,); 0 stays."""
    nx, ny, nz = labels.shape
    for i in range(nx):
        for j in range(ny):
            for k in range(nz):
                if labels[i, j, k] > 0:
                    labels[i, j, k] = numbers[labels[i, j, k] - 1]


@numba.njit(cache=True)
def _neighbours(place, where):
    """Return the numbers (V, 6) int32 in ``place`` beside voxels ``where`` (V,), rows of it."""
    _, ny, nz = place.shape
    flat, found = place.ravel(), np.empty((len(where), 6), np.int32)
    for n, steps in enumerate((-ny * nz, ny * nz, -nz, nz, -1, 1)):
        for voxel in range(len(where)):
            found[voxel, n] = flat[where[voxel] + steps]
    return found


@numba.njit(cache=True)
def _flood(order, levels, near, least):
    """Return the voxel (V,) int32 that stands for the basin of each one; -1: it has none.

    Voxels of ``order`` come from the highest level down; each joins the basin of the highest one
    ``near`` it (V, 6), -1: none. Basins that meet become one unless both held ``least`` voxels
    above the level they meet at.
    """
    count = len(levels)
    parent = np.full(count, -1, np.int32)
    size = np.zeros(count, np.int32)  # of a basin, in its root
    above = np.zeros(count, np.int32)  # what it held above the level `seen`
    seen = np.full(count, -1, np.int32)
    roots = np.empty(6, np.int32)
    for voxel in order:
        level = np.int32(levels[voxel])
        best, found, highest = np.int32(-1), 0, np.int32(-1)
        for other in near[voxel]:
            if other < 0 or parent[other] < 0:
                continue
            root = other
            while parent[root] != root:
                parent[root] = parent[parent[root]]
                root = parent[root]
            if np.int32(levels[other]) > highest:
                highest, best = np.int32(levels[other]), root
            known = False
            for k in range(found):
                known |= roots[k] == root
            if not known:
                roots[found] = root
                found += 1
                if seen[root] != level:
                    seen[root], above[root] = level, size[root]
        if found == 0:
            parent[voxel], size[voxel], seen[voxel] = voxel, 1, level
            continue
        parent[voxel] = best
        size[best] += 1
        for k in range(found if found > 1 else 0):
            root = roots[k]
            while parent[root] != root:
                root = parent[root]
            while parent[best] != best:
                best = parent[best]
            if root == best or (above[root] >= least and above[best] >= least):
                continue
            if size[root] > size[best]:
                root, best = best, root
            parent[root] = best
            size[best] += size[root]
            above[best] += above[root]
    for voxel in order:
        root = voxel
        while parent[root] != root:
            root = parent[root]
        parent[voxel] = root
    return parent
