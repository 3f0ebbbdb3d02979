"""Integer labels of points on a lattice by growing from a start with local affine maps.

Each labelled point i keeps a map: the site of label l stands at x_i + offset_i + basis_i (l - l_i),
fitted to the labelled points about it. Points are labelled where the maps about them agree, the
best supported ones first. No hexagon is assumed: labels are those of any basis of the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

NEAR = 18
"""Points about a point that are looked at: where columns are missing and cells are twice as long as
wide, they reach two steps the short way and one the long way."""
PAIRED = 8
"""Nearest points of which two may span the first cell."""
REACH = 1.3
"""Standard deviation in steps of the weight that a labelled point has for its neighbours."""
TOLERANCE = 0.42
"""A point farther than this from a site, in steps, is not labelled."""
STRAY = 0.6
"""Steps by which a labelled point may miss a map and still shape it: across a cut more is missed."""
SHARE = 0.5
"""Points are labelled in one round if their support is at least this share of the best one's."""
STARTS = 8
"""Starts of which the most consistent labelling is kept."""
MENDED = 6
"""Rounds at most in which labels that contradict their surroundings are taken back."""


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


def nearest(points: np.ndarray, count: int = NEAR) -> np.ndarray:
    """Return for each of ``points`` (N >= 2, 3) the (N, min(count, N - 1)) others nearest to it."""
    k = min(count, len(points) - 1)
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
    the square root of the cell's area, so that no finer lattice fits as well; inf where none does.
    """
    frames = across(axes)
    u = np.einsum("nac,nkc->nka", frames, points[near[:, :12]] - points[:, None])
    first, second = np.triu_indices(min(PAIRED, u.shape[1]), 1)
    cells = np.stack([u[:, first], u[:, second]], axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sites = np.rint(_solve(cells, u[:, None]))
        fit, area = _fit_cells(sites, u)
        missed = u[:, None] - np.einsum("npab,npkb->npka", fit, sites)
        misfit = np.sqrt((missed**2).sum(axis=(2, 3)) / u.shape[1] / area)
    misfit = np.where(np.isfinite(misfit), misfit, np.inf)
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


def _solve(cells: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Return the coordinates (N, P, K, 2) of ``u`` (N, 1, K, 2) in ``cells`` (N, P, 2, 2)."""
    (a, b), (c, d) = np.moveaxis(cells, (2, 3), (0, 1))
    det = (a * d - b * c)[..., None]
    x, y = u[..., 0], u[..., 1]
    p = (d[..., None] * x - b[..., None] * y) / det
    q = (a[..., None] * y - c[..., None] * x) / det
    return np.stack([p, q], axis=-1)


def _fit_cells(sites: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the least squares cells (N, P, 2, 2) that put ``sites`` on ``u``, and their areas."""
    square = np.einsum("npka,npkb->npab", sites, sites)
    det = square[..., 0, 0] * square[..., 1, 1] - square[..., 0, 1] ** 2
    swapped = square[..., ::-1, ::-1] * np.array([[1, -1], [-1, 1]])
    cross = np.einsum("nka,npkb->npab", u, sites)
    fit = np.einsum("npab,npbc->npac", cross, swapped) / det[..., None, None]
    area = np.abs(fit[..., 0, 0] * fit[..., 1, 1] - fit[..., 0, 1] * fit[..., 1, 0])
    return fit, np.where(det > 0.5, area, np.nan)


def grow(points: np.ndarray, near: np.ndarray, start: int, basis: np.ndarray) -> Growth:
    """Return what grows from point ``start``, labelled (0, 0), with ``basis`` (3, 2).

    Labels that contradict the maps about them are taken back and grown again.
    """
    n = len(points)
    growth = Growth(
        np.zeros((n, 2), np.int64), np.zeros(n, bool), np.zeros((n, 3, 2)), np.zeros((n, 3))
    )
    growth.placed[start], growth.bases[start] = True, basis
    for _ in range(MENDED):
        while _place(growth, points, near):
            _fit_maps(growth, points, near)
        sites, _, support = _predict(growth, points, near, np.flatnonzero(growth.placed))
        held = np.flatnonzero(growth.placed)
        wrong = held[(np.rint(sites) != growth.labels[held]).any(axis=1) & (support > 0)]
        if len(wrong) == 0 or len(wrong) == len(held):
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
    steps = np.einsum("akbc,akc->akb", np.linalg.pinv(growth.bases)[j], away)
    weights = np.exp(-0.5 * (steps**2).sum(axis=2) / REACH**2) * growth.placed[j]
    seen = growth.labels[j] + steps
    heaviest = np.take_along_axis(seen, weights.argmax(axis=1)[:, None, None], axis=1)
    weights = weights * (np.linalg.norm(seen - heaviest, axis=2) < STRAY)
    support = weights.sum(axis=1)
    share = weights / np.maximum(support, 1e-12)[:, None]
    sites = np.einsum("ak,akb->ab", share, seen)
    return sites, np.einsum("ak,akcb->acb", share, growth.bases[j]), support


def _place(growth: Growth, points: np.ndarray, near: np.ndarray) -> bool:
    """Label the best supported points that stand on free sites; return whether there were any."""
    asked = np.flatnonzero(~growth.placed & growth.placed[near].any(axis=1))
    sites, bases, support = _predict(growth, points, near, asked)
    labels = np.rint(sites).astype(np.int64)
    missed = np.linalg.norm(sites - labels, axis=1)
    taken = _keys(growth.labels[growth.placed])
    good = (support > 1e-3) & (missed < TOLERANCE) & ~np.isin(_keys(labels), taken)
    if not good.any():
        return False
    good &= support >= SHARE * support[good].max()
    order = np.flatnonzero(good)[np.argsort(missed[good], kind="stable")]
    order = order[np.unique(_keys(labels[order]), return_index=True)[1]]
    new = asked[order]
    growth.labels[new], growth.bases[new], growth.offsets[new] = labels[order], bases[order], 0.0
    growth.placed[new] = True
    return True


def _keys(labels: np.ndarray) -> np.ndarray:
    """Return one int64 for each label (N, 2) of less than 2^31."""
    return labels[:, 0] * 2**32 + labels[:, 1]


def _fit_maps(growth: Growth, points: np.ndarray, near: np.ndarray) -> None:
    """Fit the maps of all placed points to the labelled points about them.

    Ridge regression of where they stand on (p, q, 1), towards the mean of their own maps.
    """
    i = np.flatnonzero(growth.placed)
    j = near[i]
    steps = (growth.labels[j] - growth.labels[i, None]).astype(float)
    away = points[j] - points[i, None]
    inverse = np.linalg.pinv(growth.bases[i])
    missed = steps - np.einsum("ibc,ikc->ikb", inverse, away - growth.offsets[i, None])
    fits = growth.placed[j] & (np.linalg.norm(missed, axis=2) < STRAY)
    weights = fits * np.exp(-0.5 * (steps**2).sum(axis=2) / REACH**2)
    total = weights.sum(axis=1)[:, None, None]
    around = np.einsum("ik,ikcb->icb", weights, growth.bases[j])
    prior = np.concatenate([(around + growth.bases[i]) / (total + 1), np.zeros((len(i), 3, 1))], 2)
    design = np.concatenate([steps, np.ones((*steps.shape[:2], 1))], axis=2)
    square = np.einsum("ik,ikb,ikd->ibd", weights, design, design) + np.eye(3)
    cross = np.einsum("ik,ikc,ikb->icb", weights, away, design) + prior
    fit = np.linalg.solve(square, cross.transpose(0, 2, 1)).transpose(0, 2, 1)
    growth.bases[i], growth.offsets[i] = fit[:, :, :2], fit[:, :, 2]
