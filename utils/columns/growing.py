"""Integer labels of points on a lattice by growing from a start with local affine maps.

Each labelled point i keeps a map: the site of label l stands at x_i + offset_i + basis_i (l - l_i),
fitted to the labelled points about it. Points are labelled where the maps about them agree, the
best supported ones first. No hexagon is assumed: labels are those of any basis of the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from scipy.spatial import cKDTree

from utils.columns.diagonal import SYMMETRIES

NEAR = 18
"""Points about a point that are looked at: where columns are missing and cells are twice as long as
wide, they reach two steps the short way and one the long way."""
PAIRED = 8
"""Nearest points of which two may span the first cell."""
FLATTEST = 0.05
"""Least area of a first cell over the sum of its sides' squares: 0.43 in a regular lattice, 0.2 at
the largest anisotropy of real ones; points in a line span less."""
FULL = 0.85
"""Share of the sites that points must hold for a first cell to be believed as it is; the misfit of
finer ones is raised. A fifth of real columns is missing at times."""
REACH = 1.3
"""Standard deviation in steps of the weight that a labelled point has for its neighbours."""
TOLERANCE = 0.42
"""A point farther than this from a site, in steps, is not labelled."""
STRAY = 0.6
"""Steps by which a labelled point may miss a map and still shape it; across a cut it is more."""
SHARE = 0.5
"""Points are labelled in one round if their support is at least this share of the best one's."""
STARTS = 8
"""Starts of which the most consistent labelling is kept."""
MENDED = 6
"""Times at most that labels which contradict their surroundings are taken back and grown again: at
a cut they always do."""
SETTLED = 2
"""Fits of all maps, each towards those about it, once no more points can be labelled."""
AGREED = 0.002
"""Share by which the two most consistent labellings may differ for no more starts to be tried."""


@dataclass
class Growth:
    """Labels of N points, while they grow."""

    labels: np.ndarray
    """(N, 2) int64; meaningless where not placed."""
    placed: np.ndarray
    """(N,) bool."""
    bases: np.ndarray
    """(N, 3, 2) float64: step in space of one step of either label."""
    offsets: np.ndarray
    """(N, 3) float64 from a point to the site that it stands on."""

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Labels, placed, bases and offsets, as compiled functions take and change them."""
        return self.labels, self.placed, self.bases, self.offsets

    @classmethod
    def empty(cls, n: int) -> Growth:
        """Return ``n`` points of which none is labelled."""
        return cls(
            np.zeros((n, 2), np.int64), np.zeros(n, bool), np.zeros((n, 3, 2)), np.zeros((n, 3))
        )

    def take(self, other: Growth, i: np.ndarray) -> None:
        """Take over points ``i`` of another growth."""
        for own, others in zip(self.arrays, other.arrays, strict=True):
            own[i] = others[i]

    def rebase(self, base: np.ndarray, i: np.ndarray) -> None:
        """Tell the labels of points ``i`` in another ``base`` (2, 2), unimodular, as columns."""
        back = np.rint(np.linalg.inv(base)).astype(np.int64)
        self.labels[i] = self.labels[i] @ back.T
        self.bases[i] = self.bases[i] @ base


def nearest(points: np.ndarray, count: int = NEAR) -> np.ndarray:
    """Return for each of ``points`` (N, 3) the (N, min(count, N - 1)) others nearest to it."""
    k = max(min(count, len(points) - 1), 0)
    if k == 0:
        return np.empty((len(points), 0), np.int64)
    _, near = cKDTree(points).query(points, k=k + 1)
    own = near == np.arange(len(points))[:, None]
    own[~own.any(axis=1), -1] = True  # of equal points the tree may name another one first
    return near[~own].reshape(len(points), k)


def seers_of(near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows (N K,), ends (N + 1,): rows[ends[k] : ends[k + 1]] of ``near`` (N, K) hold k."""
    rows = np.argsort(near.ravel(), kind="stable") // max(near.shape[1], 1)
    return rows, np.append(0, np.cumsum(np.bincount(near.ravel(), minlength=len(near))))


def first_bases(
    points: np.ndarray, axes: np.ndarray, near: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the lattice cell (N, 3, 2) that best explains the points about each, and its misfit.

    Two of the nearest points span a cell in the plane across the axis; the 12 nearest are put on
    its sites and the cell is fitted to them. Misfit: root mean square distance from the sites over
    the square root of the cell's area, raised where points would hold less than :data:`FULL` of the
    sites, so that no finer lattice fits as well; inf where none does.
    """
    frames = across(axes)
    u = np.einsum("nac,nkc->nka", frames, points[near[:, :12]] - points[:, None])
    first, second = np.triu_indices(min(PAIRED, u.shape[1]), 1)
    cells = np.stack([u[:, first], u[:, second]], axis=-1)
    sites = np.rint(u[:, None] @ np.swapaxes(inverses(cells), 2, 3))
    fit = np.swapaxes(inverses(sites) @ u[:, None], 2, 3)
    area = np.abs(fit[..., 0, 0] * fit[..., 1, 1] - fit[..., 0, 1] * fit[..., 1, 0])
    missed = u[:, None] - sites @ np.swapaxes(fit, 2, 3)
    good = area > FLATTEST * (fit**2).sum(axis=(2, 3))
    mean = (missed**2).sum(axis=(2, 3)) / u.shape[1]
    misfit = np.sqrt(np.divide(mean, area, out=np.full(area.shape, np.inf), where=good))
    room = np.pi * (u**2).sum(axis=2).max(axis=1, initial=0) / (u.shape[1] + 0.5)
    misfit *= np.maximum(1.0, FULL * room[:, None] / np.maximum(area, 1e-12))
    best = misfit.argmin(axis=1)
    row = np.arange(len(points))
    return np.einsum("nac,nab->ncb", frames, fit[row, best]), misfit[row, best]


def across(axes: np.ndarray) -> np.ndarray:
    """Return (N, 2, 3) unit vectors across ``axes`` (N, 3), right-handed about them."""
    helper = np.eye(3)[np.abs(axes).argmin(axis=1)]
    first = np.cross(axes, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(axes, first)
    return np.stack([first, second / np.linalg.norm(second, axis=1, keepdims=True)], axis=1)


def grow(
    points: np.ndarray,
    near: np.ndarray,
    seers: tuple[np.ndarray, np.ndarray],
    start: int,
    basis: np.ndarray,
    free: np.ndarray,
) -> Growth:
    """Return what grows from point ``start``, labelled (0, 0), with ``basis`` (3, 2).

    Only ``free`` (N,) points are labelled. Labels that contradict the maps about them are taken
    back and grown again. ``seers``: of :func:`seers_of`.
    """
    growth = Growth.empty(len(points))
    growth.placed[start], growth.bases[start] = True, basis
    _grow_on(growth.arrays, points, near, seers, free, np.zeros(len(points), bool))
    return growth


def grow_around(
    growth: Growth,
    points: np.ndarray,
    near: np.ndarray,
    fixed: np.ndarray,
    labels: np.ndarray,
    free: np.ndarray,
) -> Growth:
    """Return a patch as it grows again from points ``fixed`` (F,), which keep ``labels`` (F, 2).

    Maps are those of ``growth``, in the symmetry of :func:`agreeing`.
    """
    own = np.flatnonzero(growth.placed)
    nearest = own[cKDTree(points[own]).query(points[fixed])[1]]
    again = Growth.empty(len(points))
    again.placed[fixed], again.labels[fixed] = True, labels
    again.bases[fixed] = growth.bases[nearest] @ np.linalg.inv(agreeing(growth, fixed, labels)[0])
    _grow_on(again.arrays, points, near, seers_of(near), free, again.placed.copy())
    return again


def agreeing(
    growth: Growth, fixed: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the symmetry, of twelve, in which most ``labels`` are a growth's, and which (F,) are.

    ``labels`` (F, 2) are those of points ``fixed`` (F,); a common step does not matter.
    """
    held = growth.placed[fixed]
    best, agreed = SYMMETRIES[0], np.zeros(len(fixed), bool)
    for symmetry in SYMMETRIES:
        steps = labels - growth.labels[fixed] @ symmetry.T
        common, counts = np.unique(steps[held], axis=0, return_counts=True)
        if counts.max(initial=0) > agreed.sum():
            best = symmetry
            agreed = held & (steps == common[counts.argmax()]).all(axis=1)
    return best, agreed


def fit_maps(
    growth: Growth, points: np.ndarray, near: np.ndarray, i: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Return bases (A, 3, 2) of placed points ``i`` (A,) at ``places`` (N, 3), another depth.

    The points about each that count, and how much, are those of its own map.
    """
    bases = growth.bases.copy()
    points, places = np.ascontiguousarray(points), np.ascontiguousarray(places)
    _fit(i, growth.arrays, points, near, places, bases, growth.offsets.copy())
    return bases[i]


def inverses(bases: np.ndarray) -> np.ndarray:
    """Return the pseudo-inverses (..., 2, D) of ``bases`` (..., D, 2), of full rank; else zeros."""
    a, b = bases[..., 0], bases[..., 1]
    aa, ab, bb = (a * a).sum(axis=-1), (a * b).sum(axis=-1), (b * b).sum(axis=-1)
    det = aa * bb - ab**2
    scale = np.divide(1.0, det, out=np.zeros_like(det), where=det > 1e-12 * aa * bb)
    weights = np.stack([np.stack([bb, -ab], axis=-1), np.stack([-ab, aa], axis=-1)], axis=-2)
    return (weights * scale[..., None, None]) @ np.stack([a, b], axis=-2)


def steps_seen(growth: Growth, points: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Return the steps (A, K, 2) from points ``i`` (A,) to ``j`` (A, K), as the maps of i see it.

    Measured between the sites on which both stand.
    """
    away = points[j] + growth.offsets[j] - (points[i] + growth.offsets[i])[:, None]
    return away @ inverses(growth.bases[i]).transpose(0, 2, 1)


def residuals(growth: Growth, points: np.ndarray, near: np.ndarray, i: np.ndarray) -> np.ndarray:
    """Return the distance in steps (A,) of points ``i`` from where the maps about them see them."""
    sites = np.empty((len(points), 3))
    _predict(i, growth.arrays, points, near, sites, growth.bases.copy())
    missed = np.linalg.norm(sites[i, :2] - growth.labels[i], axis=1)
    return np.where(sites[i, 2] > 0, missed, np.nan)


def patches(points: np.ndarray, axes: np.ndarray, near: np.ndarray, least: int) -> list[Growth]:
    """Return the patches of at least ``least`` points, each the most consistent of several starts.

    Points that one patch holds are not offered to the next; the largest patch comes first.
    """
    if len(points) < least:
        return []
    bases, misfit = first_bases(points, axes, near)
    free, found = np.isfinite(misfit), list[Growth]()
    order, seers = np.argsort(misfit, kind="stable"), seers_of(near)
    while free.sum() >= least:
        starts = _spread(order[free[order]], near)
        best = _most_consistent(points, near, seers, starts, bases, free)
        if best.placed.sum() < least:
            free[starts] = False
            continue
        free &= ~best.placed
        found.append(best)
    return sorted(found, key=lambda growth: -int(growth.placed.sum()))


def _most_consistent(
    points: np.ndarray,
    near: np.ndarray,
    seers: tuple[np.ndarray, np.ndarray],
    starts: np.ndarray,
    bases: np.ndarray,
    free: np.ndarray,
) -> Growth:
    """Return the most consistent growth; no more starts are tried once the two best agree."""
    grown: list[tuple[float, Growth]] = []
    for start in starts:
        growth = grow(points, near, seers, int(start), bases[start], free)
        grown.append((_consistency(growth.arrays, points, near), growth))
        grown.sort(key=lambda scored: -scored[0])
        if len(grown) > 1 and grown[1][0] > (1 - AGREED) * grown[0][0]:
            break
    return grown[0][1]


def _spread(order: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the first STARTS of ``order`` of which none is near an earlier one."""
    starts, beside = list[int](), np.zeros(len(near), bool)
    for point in order:
        if not beside[point]:
            starts.append(point)
            beside[near[point]] = True
        if len(starts) == STARTS:
            break
    return np.array(starts)


@numba.njit(cache=True)
def _grow_on(growth, points, near, seers, free, kept):
    """Label all ``free`` (N,) points that ``growth`` reaches; ``kept`` (N,) stay as they are."""
    labels, placed, _, _ = growth
    n, (rows, first) = len(points), seers
    sites, bases, offsets = np.empty((n, 3)), np.empty((n, 3, 2)), np.empty((n, 3))
    # What points would see is kept while nothing near them changes: many never find a site.
    asked, stale, taken = np.zeros(n, np.bool_), np.ones(n, np.bool_), {np.int64(0)}
    taken.clear()
    for i in np.flatnonzero(placed):
        taken.add(_key(labels[i, 0], labels[i, 1]))
        for k in rows[first[i] : first[i + 1]]:
            asked[k] = free[k]
    for mended in range(MENDED + 1):
        while True:
            waiting = np.flatnonzero(asked & ~placed)
            _predict(waiting[stale[waiting]], growth, points, near, sites, bases)
            stale[waiting] = False
            new = _place(waiting, growth, taken, sites, bases)
            if len(new) == 0:
                break
            changed = np.zeros(n, np.bool_)
            for i in new:
                changed[i] = True
                for k in rows[first[i] : first[i + 1]]:
                    changed[k] = True
                    asked[k] = free[k]
            fitted = np.flatnonzero(changed & placed)
            _refit(fitted, growth, points, near, bases, offsets)
            for i in fitted:
                for k in rows[first[i] : first[i + 1]]:
                    stale[k] = True
        held = np.flatnonzero(placed)
        for _ in range(SETTLED):
            _refit(held, growth, points, near, bases, offsets)
        _predict(held, growth, points, near, sites, bases)
        stale[:], done = True, True
        for i in held:
            right = np.rint(sites[i, 0]) == labels[i, 0] and np.rint(sites[i, 1]) == labels[i, 1]
            if mended < MENDED and not right and sites[i, 2] > 0 and not kept[i]:
                placed[i], asked[i], done = False, free[i], False
                taken.discard(_key(labels[i, 0], labels[i, 1]))
        if done:
            break


@numba.njit(cache=True)
def _place(asked, growth, taken, sites, means):
    """Label the best supported of ``asked`` points on free sites; return which these are.

    Of several on one site it is the nearest. ``taken``: keys of the labels that are given;
    ``sites`` and ``means``: of :func:`_predict`.
    """
    labels, placed, bases, offsets = growth
    missed, best = np.full(len(asked), np.inf), 0.0
    for n, i in enumerate(asked):
        p, q, support = sites[i]
        away = np.hypot(p - np.rint(p), q - np.rint(q))
        if support > 1e-3 and away < TOLERANCE and _key(p, q) not in taken:
            missed[n], best = away, max(best, support)
    new = np.zeros(len(asked), np.bool_)
    for _ in asked:
        n = missed.argmin()
        if missed[n] == np.inf:
            break
        i = asked[n]
        p, q, support = sites[i]
        if support >= SHARE * best and _key(p, q) not in taken:
            taken.add(_key(p, q))
            new[n], placed[i] = True, True
            labels[i, 0], labels[i, 1] = np.rint(p), np.rint(q)
            bases[i], offsets[i] = means[i], 0.0
        missed[n] = np.inf
    return asked[new]


@numba.njit(cache=True)
def _key(p, q):
    """Return one int64 for each label of less than 2^31, told as a real number."""
    return np.int64(np.rint(p)) * 2**32 + np.int64(np.rint(q))


@numba.njit(cache=True)
def _steps(basis, end, start, offset):
    """Return the steps p, q of ``basis`` (3, 2) from ``start`` + ``offset`` (3,) to ``end`` (3,).

    Those of the pseudo-inverse, as :func:`inverses`.
    """
    aa, ab, bb, u, v = 0.0, 0.0, 0.0, 0.0, 0.0
    for c in range(3):
        a, b, way = basis[c, 0], basis[c, 1], end[c] - start[c] - offset[c]
        aa, ab, bb, u, v = aa + a * a, ab + a * b, bb + b * b, u + a * way, v + b * way
    det = aa * bb - ab * ab
    if not det > 1e-12 * aa * bb:
        return 0.0, 0.0
    return (bb * u - ab * v) / det, (aa * v - ab * u) / det


@numba.njit(cache=True)
def _predict(asked, growth, points, near, sites, means):
    """Write where the maps about points ``asked`` (A,) see them into these rows.

    ``sites`` (N, 3): label as a real number, and support, which is the weights' sum; ``means``
    (N, 3, 2): mean basis. Maps that disagree with the heaviest one, as across a cut, are not heard.
    """
    labels, placed, bases, offsets = growth
    seen = np.zeros((near.shape[1], 3))
    for i in asked:
        heaviest = 0
        for n, k in enumerate(near[i]):
            seen[n, 2] = 0.0
            if placed[k]:
                p, q = _steps(bases[k], points[i], points[k], offsets[k])
                seen[n, 0], seen[n, 1] = labels[k, 0] + p, labels[k, 1] + q
                seen[n, 2] = np.exp(-0.5 * (p * p + q * q) / REACH**2)
                if seen[n, 2] > seen[heaviest, 2]:
                    heaviest = n
        p, q, support = 0.0, 0.0, 0.0
        means[i] = 0.0
        for n, k in enumerate(near[i]):
            weight = seen[n, 2]
            away = np.hypot(seen[n, 0] - seen[heaviest, 0], seen[n, 1] - seen[heaviest, 1])
            if weight > 0 and away < STRAY:
                p, q, support = p + weight * seen[n, 0], q + weight * seen[n, 1], support + weight
                for c in range(3):
                    means[i, c, 0] += weight * bases[k, c, 0]
                    means[i, c, 1] += weight * bases[k, c, 1]
        total = max(support, 1e-12)
        sites[i, 0], sites[i, 1], sites[i, 2] = p / total, q / total, support
        means[i] /= total


@numba.njit(cache=True)
def _refit(i, growth, points, near, bases, offsets):
    """Fit the maps of placed points ``i`` (A,) to the labelled points about them, all at once.

    Rows ``i`` of ``bases`` (N, 3, 2) and ``offsets`` (N, 3) are written over.
    """
    _fit(i, growth, points, near, points, bases, offsets)
    for k in i:
        growth[2][k], growth[3][k] = bases[k], offsets[k]


@numba.njit(cache=True)
def _fit(which, growth, points, near, places, fitted, moved):
    """Write maps of placed points ``which`` (A,) into rows of ``fitted`` and ``moved``.

    Ridge regression of the ``places`` (N, 3) on (p, q, 1), towards the mean of the maps about each,
    as a change of its own map. Points that miss that at ``points`` (N, 3), as across a cut, do not
    count.
    """
    labels, placed, bases, offsets = growth
    for i in which:
        total, around, cross = 1.0, np.zeros((3, 2)), np.zeros((3, 3))
        pp, pq, qq, p1, q1 = 1.0, 0.0, 1.0, 0.0, 0.0
        for k in near[i]:
            if not placed[k]:
                continue
            p, q = float(labels[k, 0] - labels[i, 0]), float(labels[k, 1] - labels[i, 1])
            u, v = _steps(bases[i], points[k], points[i], offsets[i])
            if (p - u) ** 2 + (q - v) ** 2 < STRAY**2:
                weight = np.exp(-0.5 * (p * p + q * q) / REACH**2)
                total, p1, q1 = total + weight, p1 + weight * p, q1 + weight * q
                pp, pq, qq = pp + weight * p * p, pq + weight * p * q, qq + weight * q * q
                for c in range(3):
                    missed = places[k, c] - places[i, c] - p * bases[i, c, 0] - q * bases[i, c, 1]
                    cross[c, 0] += p * weight * missed
                    cross[c, 1] += q * weight * missed
                    cross[c, 2] += weight * missed
                    around[c, 0] += weight * (bases[k, c, 0] - bases[i, c, 0])
                    around[c, 1] += weight * (bases[k, c, 1] - bases[i, c, 1])
        # The inverse of the symmetric ((pp, pq, p1), (pq, qq, q1), (p1, q1, total)).
        a, b, c = qq * total - q1 * q1, p1 * q1 - pq * total, pq * q1 - qq * p1
        d, e, f = pp * total - p1 * p1, pq * p1 - pp * q1, pp * qq - pq * pq
        det = pp * a + pq * b + p1 * c
        for n in range(3):
            x, y = cross[n, 0] + around[n, 0] / total, cross[n, 1] + around[n, 1] / total
            z = cross[n, 2]
            fitted[i, n, 0] = bases[i, n, 0] + (a * x + b * y + c * z) / det
            fitted[i, n, 1] = bases[i, n, 1] + (b * x + d * y + e * z) / det
            moved[i, n] = (c * x + e * y + f * z) / det


@numba.njit(cache=True)
def _consistency(growth, points, near):
    """Return how many steps of one or less the labels hold, less those that maps contradict."""
    labels, placed, bases, offsets = growth
    stands, total, nothing = points + offsets, 0, np.zeros(3)
    for i in np.flatnonzero(placed):
        for k in near[i]:
            if placed[k]:
                p, q = _steps(bases[i], stands[k], stands[i], nothing)
                missed = np.hypot(p - labels[k, 0] + labels[i, 0], q - labels[k, 1] + labels[i, 1])
                if p * p + q * q < 2.5:
                    total += 1 if missed < 0.35 else -1
    return total
