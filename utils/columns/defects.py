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
    rings = {int(i): _ring(growth, points, axes[i], near[i], i) for i in asked if patch[i]}
    odd = np.array([i for i, (fold, step) in rings.items() if fold != 6 or step != (0, 0)], int)
    defects = []
    for group in _connected(odd, near, len(points)):
        kinds = [rings[int(i)] for i in group]
        fold, step = max(sorted(set(kinds)), key=kinds.count)
        place = points[group[[kind == (fold, step) for kind in kinds]]].mean(axis=0)
        columns = group.astype(np.int32)
        defects.append(Defect(place, int(patch[group[0]]), fold, step, columns))
    return tuple(defects), _origins(cut_pairs, near, defects, len(points))


def _ring(
    growth: Growth, points: np.ndarray, axis: np.ndarray, near: np.ndarray, i: int
) -> tuple[int, tuple[int, int]]:
    """Return (fold, step) of the ring of columns ``near`` column ``i``; (6, (0, 0)): no defect."""
    ring = near[growth.placed[near]]
    plane = across(axis[None])[0]
    x, y = plane @ (points[ring] - points[i]).T
    angle = np.arctan2(y, x)
    order = np.argsort(angle)
    gaps = np.diff(angle[order], append=angle[order[:1]] + 2 * np.pi)
    if len(ring) < 5 or gaps.max() > WIDEST_GAP:
        return 6, (0, 0)
    ring = ring[order]
    sites, bases = (points + growth.offsets)[ring], growth.bases[ring]
    back = inverses(bases)
    change = np.zeros((len(ring), 3, 3), np.int64)
    change[:, :2, :2] = np.rint(back @ np.roll(bases, -1, axis=0))
    away = np.roll(sites, -1, axis=0) - sites
    change[:, :2, 2] = np.rint(np.einsum("kbc,kc->kb", back, away))
    change[:, 2, 2] = 1
    total = np.linalg.multi_dot(list(change))
    handed = np.sign(np.linalg.det(plane @ bases).sum())
    for fold in (6, 5, 7, 4, 8):
        turn = np.rint(np.linalg.matrix_power(TURN.astype(float), (fold - 6) % 6))
        if (total[:2, :2] == (turn if handed > 0 else np.rint(np.linalg.inv(turn)))).all():
            return fold, (int(total[0, 2]), int(total[1, 2])) if fold == 6 else (0, 0)
    return 6, (0, 0)


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
