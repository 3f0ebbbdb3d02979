"""Where a lattice has no chart: five- and sevenfold points and dislocations, found by going round.

Each column's map gives a chart; from one to the next it changes by a step and a turn. The changes
along a ring about a point of a whole lattice come to nothing. A turn by 60 degrees remains about a
five- or sevenfold point, a step about a dislocation. Labels then have a cut, which starts there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from utils.columns.growing import Growth, across, inverses

WIDEST_GAP = np.pi / 2
"""Angle between two columns of a ring, seen from its middle, at which it is open: a border."""
TURN = np.array([[1, -1], [1, 0]])
"""Turn of (p, q) by 60 degrees, from p towards q."""


@dataclass(frozen=True)
class Defect:
    """A place about which no chart holds."""

    position: np.ndarray
    """(3,) micrometres."""
    patch: int
    fold: int
    """Neighbours of the column at its heart: 5, 7, ...; 6: a dislocation."""
    step: tuple[int, int]
    """(p, q) by which a ring about a dislocation fails to close, from where it was found."""
    columns: np.ndarray
    """(C,) int32 columns whose rings hold it."""


def find_defects(
    growth: Growth,
    points: np.ndarray,
    axes: np.ndarray,
    near: np.ndarray,
    patch: np.ndarray,
    cut_pairs: np.ndarray,
) -> tuple[tuple[Defect, ...], np.ndarray]:
    """Return the defects, and the number 1, 2, ... of the one that each of the cuts starts from.

    Args:
        growth: labels as (p, q), and the maps.
        points: (N, 3) micrometres.
        axes: (N, 3).
        near: (N, K) columns near each.
        patch: (N,) number of each column's patch, 0: none.
        cut_pairs: (F, 2) pairs of neighbours across a cut.

    Returns:
        Defects, and (F,) int32, -1 where no defect was found at a cut's ends.
    """
    asked = np.unique(np.append(near[cut_pairs], cut_pairs)) if len(cut_pairs) else cut_pairs[:, 0]
    asked = asked[patch[asked] > 0]
    rings = _rings(growth, points, across(axes[asked]), near[asked], asked)
    odd = asked[(rings != (6, 0, 0)).any(axis=1)]
    kinds = dict(zip(asked.tolist(), map(tuple, rings.tolist()), strict=True))
    defects = []
    for group in _connected(odd, near, len(points)):
        own = [kinds[int(i)] for i in group]
        fold, p, q = max(sorted(set(own)), key=own.count)
        place = points[group[[kind == (fold, p, q) for kind in own]]].mean(axis=0)
        columns = group.astype(np.int32)
        defects.append(Defect(place, int(patch[group[0]]), fold, (p, q), columns))
    return tuple(defects), _origins(cut_pairs, near, defects, len(points))


def _rings(
    growth: Growth, points: np.ndarray, planes: np.ndarray, near: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """Return fold, p, q (A, 3) of the rings of columns ``near`` (A, K) columns ``asked`` (A,).

    6, 0, 0 is no defect; ``planes`` (A, 2, 3) lie across the axes.
    """
    held = growth.placed[near]
    x, y = np.einsum("abc,akc->bak", planes, points[near] - points[asked, None])
    angle = np.where(held, np.arctan2(y, x), np.inf)
    order = np.argsort(angle, axis=1)
    angle, ring = (np.take_along_axis(v, order, axis=1) for v in (angle, near))
    place, count = np.arange(near.shape[1]), held.sum(axis=1, keepdims=True)
    inside, after = place < count, np.where(place + 1 < count, place + 1, 0)
    following = np.take_along_axis(ring, after, axis=1)
    gaps = np.take_along_axis(angle, after, axis=1) + 2 * np.pi * (after == 0)
    gaps = np.subtract(gaps, angle, out=np.zeros(gaps.shape), where=inside)
    closed = (count[:, 0] >= 5) & (gaps.max(axis=1, initial=0) <= WIDEST_GAP)
    sites, bases = points + growth.offsets, growth.bases[ring]
    back = inverses(bases)
    change = np.tile(np.eye(3, dtype=np.int64), (*ring.shape, 1, 1))
    change[..., :2, :2] = np.rint(back @ growth.bases[following])
    change[..., :2, 2] = np.rint(np.einsum("akbc,akc->akb", back, sites[following] - sites[ring]))
    change[~inside] = np.eye(3)
    total = np.tile(np.eye(3, dtype=np.int64), (len(asked), 1, 1))
    for k in place:
        total = total @ change[:, k]
    handed = (np.linalg.det(planes[:, None] @ bases) * inside).sum(axis=1)
    found = np.tile([6, 0, 0], (len(asked), 1))
    straight = closed & (total[:, :2, :2] == np.eye(2)).all(axis=(1, 2))
    found[straight, 1:] = total[straight, :2, 2]
    for fold in (5, 7, 4, 8):
        ways = [np.linalg.matrix_power(TURN, (sign * (fold - 6)) % 6) for sign in (-1, 1)]
        turn = np.where(handed[:, None, None] > 0, ways[1], ways[0])
        found[closed & (total[:, :2, :2] == turn).all(axis=(1, 2)), 0] = fold
    return found


def _connected(columns: np.ndarray, near: np.ndarray, n: int) -> list[np.ndarray]:
    """Return the groups of ``columns`` (C,) that are connected by being near each other."""
    chosen = np.zeros(n, bool)
    chosen[columns] = True
    first = np.repeat(columns, near.shape[1])
    second = near[columns].ravel()
    kept = chosen[second]
    edges = coo_array((np.ones(kept.sum()), (first[kept], second[kept])), shape=(n, n))
    group = connected_components(edges, directed=False)[1][columns]
    return [columns[group == g] for g in np.unique(group)]


def _origins(cut_pairs: np.ndarray, near: np.ndarray, defects: list[Defect], n: int) -> np.ndarray:
    """Return the number of the defect that each of ``cut_pairs`` (F, 2) can be followed to."""
    origins = np.full(len(cut_pairs), -1, np.int32)
    for cut in _connected(np.unique(cut_pairs), near, n):
        about = np.unique(np.append(near[cut], cut))
        for number, defect in enumerate(defects, 1):
            if np.isin(defect.columns, about).any():
                origins[np.isin(cut_pairs[:, 0], cut)] = number
    return origins
