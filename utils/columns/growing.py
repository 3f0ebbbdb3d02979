"""Integer labels of points on a lattice by growing from a start with local affine maps.

Each labelled point i keeps a map: the site of label l stands at x_i + offset_i + basis_i (l - l_i),
fitted to the labelled points about it. Points are labelled where the maps about them agree, the
best supported ones first. No hexagon is assumed: labels are those of any basis of the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @classmethod
    def empty(cls, n: int) -> Growth:
        """Return ``n`` points of which none is labelled."""
        return cls(
            np.zeros((n, 2), np.int64), np.zeros(n, bool), np.zeros((n, 3, 2)), np.zeros((n, 3))
        )

    def take(self, other: Growth, i: np.ndarray) -> None:
        """Take over points ``i`` of another growth."""
        for name in ("labels", "placed", "bases", "offsets"):
            getattr(self, name)[i] = getattr(other, name)[i]

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
    points: np.ndarray, near: np.ndarray, start: int, basis: np.ndarray, free: np.ndarray
) -> Growth:
    """Return what grows from point ``start``, labelled (0, 0), with ``basis`` (3, 2).

    Only ``free`` (N,) points are labelled. Labels that contradict the maps about them are taken
    back and grown again.
    """
    growth = Growth.empty(len(points))
    growth.placed[start], growth.bases[start] = True, basis
    return _grow_on(growth, points, near, free, np.zeros(len(points), bool))


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
    kept = again.placed.copy()
    return _grow_on(again, points, near, free, kept)


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


def _grow_on(
    growth: Growth, points: np.ndarray, near: np.ndarray, free: np.ndarray, kept: np.ndarray
) -> Growth:
    """Return ``growth`` with all ``free`` (N,) points that it reaches; ``kept`` (N,) stay."""
    for mended in range(MENDED + 1):
        while len(new := _place(growth, points, near, free)):
            fresh = np.zeros(len(points), bool)
            fresh[new] = True
            beside = growth.placed & (fresh | fresh[near].any(axis=1))
            _fit_maps(growth, points, near, np.flatnonzero(beside))
        held = np.flatnonzero(growth.placed)
        for _ in range(SETTLED):
            _fit_maps(growth, points, near, held)
        sites, _, support = _predict(growth, points, near, held)
        wrong = (np.rint(sites) != growth.labels[held]).any(axis=1) & (support > 0)
        wrong = held[wrong & ~kept[held]]
        if len(wrong) == 0 or mended == MENDED:
            break
        growth.placed[wrong] = False
    return growth


def _predict(
    growth: Growth, points: np.ndarray, near: np.ndarray, asked: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the maps about ``asked`` (A,) points see them.

    Maps that disagree with the heaviest one, as across a cut, are not heard.

    Returns:
        (A, 2) label as a real number, (A, 3, 2) mean basis, (A,) support: the weights' sum.
    """
    j = near[asked]
    away = points[asked, None] - points[j] - growth.offsets[j]
    steps = np.einsum("akbc,akc->akb", inverses(growth.bases)[j], away)
    weights = np.exp(-0.5 * (steps**2).sum(axis=2) / REACH**2) * growth.placed[j]
    seen = growth.labels[j] + steps
    heaviest = np.take_along_axis(seen, weights.argmax(axis=1)[:, None, None], axis=1)
    weights = weights * (np.linalg.norm(seen - heaviest, axis=2) < STRAY)
    support = weights.sum(axis=1)
    share = weights / np.maximum(support, 1e-12)[:, None]
    sites = np.einsum("ak,akb->ab", share, seen)
    return sites, np.einsum("ak,akcb->acb", share, growth.bases[j]), support


def _place(growth: Growth, points: np.ndarray, near: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Label the best supported points that stand on free sites; return (A,) which these are."""
    asked = np.flatnonzero(free & ~growth.placed & growth.placed[near].any(axis=1))
    sites, bases, support = _predict(growth, points, near, asked)
    labels = np.rint(sites).astype(np.int64)
    missed = np.linalg.norm(sites - labels, axis=1)
    taken = _keys(growth.labels[growth.placed])
    good = (support > 1e-3) & (missed < TOLERANCE) & ~np.isin(_keys(labels), taken)
    if not good.any():
        return asked[:0]
    good &= support >= SHARE * support[good].max()
    order = np.flatnonzero(good)[np.argsort(missed[good], kind="stable")]
    order = order[np.unique(_keys(labels[order]), return_index=True)[1]]
    new = asked[order]
    growth.labels[new], growth.bases[new], growth.offsets[new] = labels[order], bases[order], 0.0
    growth.placed[new] = True
    return new


def _keys(labels: np.ndarray) -> np.ndarray:
    """Return one int64 for each label (N, 2) of less than 2^31."""
    return labels[:, 0] * 2**32 + labels[:, 1]


def _fit_maps(growth: Growth, points: np.ndarray, near: np.ndarray, i: np.ndarray) -> None:
    """Fit the maps of placed points ``i`` (A,) to the labelled points about them."""
    steps, weights = surroundings(growth, points, near, i)
    growth.bases[i], growth.offsets[i] = fit_maps(growth, points, near, i, steps, weights)


def surroundings(
    growth: Growth, points: np.ndarray, near: np.ndarray, i: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps (A, K, 2) from points ``i`` (A,) to those near them, and weights (A, K).

    Weights are 0 for points that are not placed or miss the map, as across a cut.
    """
    j = near[i]
    steps = (growth.labels[j] - growth.labels[i, None]).astype(float)
    away = points[j] - points[i, None] - growth.offsets[i, None]
    missed = steps - away @ inverses(growth.bases[i]).transpose(0, 2, 1)
    fits = growth.placed[j] & ((missed**2).sum(axis=2) < STRAY**2)
    return steps, fits * np.exp(-0.5 * (steps**2).sum(axis=2) / REACH**2)


def fit_maps(
    growth: Growth,
    points: np.ndarray,
    near: np.ndarray,
    i: np.ndarray,
    steps: np.ndarray,
    weights: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return bases (A, 3, 2) and offsets (A, 3) of points ``i``: where ``points`` see the sites.

    Ridge regression of the places on (p, q, 1), towards the mean of the maps about them.
    """
    j = near[i]
    around = np.einsum("ik,ikcb->icb", weights, growth.bases[j]) + growth.bases[i]
    prior = around / (weights.sum(axis=1) + 1)[:, None, None]
    design = np.concatenate([steps, np.ones((*weights.shape, 1))], axis=2)
    heavy = weights[:, :, None] * design
    square = heavy.transpose(0, 2, 1) @ design + np.eye(3)
    cross = heavy.transpose(0, 2, 1) @ (points[j] - points[i, None])
    cross[:, :2] += prior.transpose(0, 2, 1)
    fit = np.linalg.solve(square, cross)
    return fit[:, :2].transpose(0, 2, 1), fit[:, 2]


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
    sites, _, support = _predict(growth, points, near, i)
    missed = np.linalg.norm(sites - growth.labels[i], axis=1)
    return np.where(support > 0, missed, np.nan)


def patches(points: np.ndarray, axes: np.ndarray, near: np.ndarray, least: int) -> list[Growth]:
    """Return the patches of at least ``least`` points, each the most consistent of several starts.

    Points that one patch holds are not offered to the next; the largest patch comes first.
    """
    if len(points) < least:
        return []
    bases, misfit = first_bases(points, axes, near)
    free, found = np.isfinite(misfit), list[Growth]()
    while free.sum() >= least:
        starts = _spread(np.flatnonzero(free)[np.argsort(misfit[free])], near)
        best = _most_consistent(points, near, starts, bases, free)
        if best.placed.sum() < least:
            free[starts] = False
            continue
        free &= ~best.placed
        found.append(best)
    return sorted(found, key=lambda growth: -int(growth.placed.sum()))


def _most_consistent(
    points: np.ndarray, near: np.ndarray, starts: np.ndarray, bases: np.ndarray, free: np.ndarray
) -> Growth:
    """Return the most consistent growth; no more starts are tried once the two best agree."""
    grown: list[tuple[float, Growth]] = []
    for start in starts:
        growth = grow(points, near, int(start), bases[start], free)
        grown.append((_consistency(growth, points, near), growth))
        grown.sort(key=lambda scored: -scored[0])
        if len(grown) > 1 and grown[1][0] > (1 - AGREED) * grown[0][0]:
            break
    return grown[0][1]


def _spread(order: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the first STARTS of ``order`` of which none is near an earlier one."""
    starts: list[int] = []
    for point in order:
        if not any(point in near[s] for s in starts):
            starts.append(point)
        if len(starts) == STARTS:
            break
    return np.array(starts)


def _consistency(growth: Growth, points: np.ndarray, near: np.ndarray) -> float:
    """Return how many steps of one or less the labels hold, less those that maps contradict."""
    i = np.flatnonzero(growth.placed)
    j = near[i]
    seen = steps_seen(growth, points, i, j)
    missed = np.linalg.norm(seen - (growth.labels[j] - growth.labels[i, None]), axis=2)
    short = growth.placed[j] & ((seen**2).sum(axis=2) < 2.5)
    return float((short * np.where(missed < 0.35, 1.0, -1.0)).sum())
