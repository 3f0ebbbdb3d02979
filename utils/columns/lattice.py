"""The lattice that columns stand on: which column is which, from points and axes alone.

Axial coordinates (p, q): the six neighbours of a column are +-(1, 0), +-(0, 1) and +-(1, 1). Square
labels are grown first (:mod:`utils.columns.growing`), then a vote settles the diagonal
(:mod:`utils.columns.diagonal`). Without landmarks origin and orientation are free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from utils.columns import growing
from utils.columns.defects import Defect, find_defects
from utils.columns.diagonal import HEXAGON, Vote, vote
from utils.columns.missing import Inferred, infer_columns
from utils.errors import UserError

LEAST_PATCH = 7
"""Columns in the smallest patch: one and six about it; fewer stand on any lattice."""


@dataclass(frozen=True)
class Lattice:
    """Where N columns stand in the lattice."""

    patch: np.ndarray
    """(N,) int32: 1 for the largest patch, 2, 3, ...; 0: fits nowhere."""
    pq: np.ndarray
    """(N, 2) int32; zeros where patch is 0. Patches do not share their coordinates."""
    residual: np.ndarray
    """(N,) float64 distance in steps from the site that the columns about it see; NaN: no patch."""
    n_neighbors: np.ndarray
    """(N,) int32 neighbours found, 0 to 6; those across a cut are not counted."""
    pairs: np.ndarray
    """(E, 2) int32 pairs of neighbours k < l, those across a cut too."""
    cut: np.ndarray
    """(E,) int32: 0, but where neighbours' coordinates are not, for they lie across a cut; the
    number 1, 2, ... of the defect that the cut starts from, -1: none was found."""
    steps: np.ndarray
    """(N, 3, 2) float64 micrometres in space of one step of p and of q; NaN where patch is 0."""
    votes: tuple[Vote, ...]
    """How the diagonal was settled, for patch 1, 2, ..."""
    defects: tuple[Defect, ...]
    """Where no chart holds; defect 1 first."""
    inferred: Inferred
    """Columns that were not found."""


def fit_lattice(
    points: np.ndarray,
    axes: np.ndarray,
    *,
    paths: np.ndarray | None = None,
    fixed: tuple[np.ndarray, np.ndarray] | None = None,
) -> Lattice:
    """Return where columns stand in the lattice.

    Args:
        points: (N, 3) micrometres, the columns at mid depth.
        axes: (N, 3) unit vectors along the columns; either way, but all of them the same.
        paths: (N, D, 3) micrometres, the columns at D more depths, the same in all: the diagonal is
            settled at the clearest one.
        fixed: rows (F,) of columns and their (p, q) (F, 2), which stay; their patches grow again
            from them.

    Raises:
        UserError: arrays that do not belong together; two columns of a patch fixed to one (p, q).

    Columns with numbers that are not finite fit nowhere, and so do points in a line.
    """
    all_points, points, axes = points, np.asarray(points, float), np.asarray(axes, float)
    depths = points[:, None] if paths is None else np.concatenate([points[:, None], paths], axis=1)
    used = _usable(points, axes, depths)
    points, axes, depths = points[used], axes[used], depths[used]
    n = len(points)
    patch, whole = np.zeros(n, np.int32), growing.Growth.empty(n)
    residual, votes = np.full(n, np.nan), list[Vote]()
    near = growing.nearest(points)
    growths = growing.patches(points, axes, near, LEAST_PATCH)
    for growth in growths:
        i = np.flatnonzero(growth.placed)
        base, result = vote(_bases_by_depth(growth, depths, near, i))
        growth.rebase(_right_handed(base, growth.bases[i] @ base, axes[i]), i)
        centre = np.linalg.norm(points[i] - points[i].mean(axis=0), axis=1).argmin()
        growth.labels[i] -= growth.labels[i[centre]]
        votes.append(result)
    if fixed is not None and growths:
        growths = _around_fixed(growths, points, near, np.searchsorted(used, fixed[0]), fixed[1])
    for number, growth in enumerate(growths, start=1):
        i = np.flatnonzero(growth.placed)
        patch[i] = number
        residual[i] = growing.residuals(growth, points, near, i)
        whole.take(growth, i)
    pairs, is_cut = _neighbours(whole, points, near, patch)
    defects, origins = find_defects(whole, points, axes, near, patch, pairs[is_cut])
    cut = np.zeros(len(pairs), np.int32)
    cut[is_cut] = origins
    pq = whole.labels.astype(np.int32)
    steps = np.where(whole.placed[:, None, None], whole.bases, np.nan)
    pairs = used[pairs].astype(np.int32)
    return Lattice(
        patch=_spread(patch, used, len(all_points), 0),
        pq=_spread(pq, used, len(all_points), 0),
        residual=_spread(residual, used, len(all_points), np.nan),
        n_neighbors=np.bincount(pairs[cut == 0].ravel(), minlength=len(all_points)).astype(
            np.int32
        ),
        pairs=pairs,
        cut=cut,
        steps=_spread(steps, used, len(all_points), np.nan),
        votes=tuple(votes),
        defects=tuple(replace(d, columns=used[d.columns].astype(np.int32)) for d in defects),
        inferred=infer_columns(patch, pq, depths, axes),
    )


def _around_fixed(
    growths: list[growing.Growth],
    points: np.ndarray,
    near: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
) -> list[growing.Growth]:
    """Return patches of which those with ``rows`` (F,) have grown again from their ``labels``.

    A row without a place belongs to the patch of the point nearest to it that has one. Where most
    rows say what was found anyway, as those of a whole table do, one of these gives way to a row
    that was changed to its (p, q).
    """
    owner = np.full(len(points), -1)
    for number, growth in enumerate(growths):
        owner[growth.placed] = number
    placed = np.flatnonzero(owner >= 0)
    of = owner[placed[cKDTree(points[placed]).query(points[rows])[1]]]
    again = list(growths)
    for number in np.unique(of):
        fixed, wanted = rows[of == number], labels[of == number]
        _, found = growing.agreeing(growths[number], fixed, wanted)
        if 2 * np.count_nonzero(found) > len(found):
            taken = (wanted[:, None] == wanted[~found]).all(axis=2).any(axis=1)
            fixed, wanted = fixed[~(found & taken)], wanted[~(found & taken)]
        sites, counts = np.unique(wanted, axis=0, return_counts=True)
        if counts.max() > 1:
            p, q = sites[counts.argmax()]
            raise UserError(f"--corrections: two columns of one patch both have p = {p}, q = {q}")
        free = (owner < 0) | (owner == number)
        again[number] = growing.grow_around(growths[number], points, near, fixed, wanted, free)
        owner[again[number].placed] = number
    return again


def _usable(points: np.ndarray, axes: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Return the rows (U,) of columns with finite positions and an axis; raise on wrong shapes."""
    if points.shape[1:] != (3,) or axes.shape != points.shape or depths.shape[2:] != (3,):
        raise UserError(
            f"a lattice of points {points.shape}, axes {axes.shape} and positions by depth "
            f"{depths.shape}: must be (N, 3), (N, 3) and (N, D, 3)"
        )
    finite = np.isfinite(depths).all(axis=(1, 2)) & np.isfinite(axes).all(axis=1)
    return np.flatnonzero(finite & (np.abs(axes).sum(axis=1) > 0))


def _spread(values: np.ndarray, rows: np.ndarray, n: int, rest: float) -> np.ndarray:
    """Return ``values`` (U, ...) at ``rows`` (U,) of ``n``, and ``rest`` in the others."""
    whole = np.full((n, *values.shape[1:]), rest, values.dtype)
    whole[rows] = values
    return whole


def _bases_by_depth(
    growth: growing.Growth, depths: np.ndarray, near: np.ndarray, i: np.ndarray
) -> np.ndarray:
    """Return the steps (D, A, 3, 2) of columns ``i`` at each depth, the first being mid depth."""
    bases = [
        growing.fit_maps(growth, depths[:, 0], near, i, depths[:, d])
        for d in range(depths.shape[1])
    ]
    return np.stack(bases)


def _right_handed(base: np.ndarray, steps: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return ``base`` with p and q swapped where (p x q) runs against the axes."""
    turn = np.einsum("ic,ic->i", np.cross(steps[:, :, 0], steps[:, :, 1]), axes)
    return base if np.sign(turn).sum() >= 0 else base[:, ::-1]


def _neighbours(
    growth: growing.Growth, points: np.ndarray, near: np.ndarray, patch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (E, 2) of neighbours, and which lie across a cut.

    Columns of one patch are neighbours where a map and their labels say so; where both maps do, but
    not the labels, or the patches are two, the pair is cut.
    """
    i = np.flatnonzero(patch)
    j = near[i]
    seen = growing.steps_seen(growth, points, i, j)
    rounded = np.rint(seen).astype(np.int64)
    close = ((seen - rounded) ** 2).sum(axis=2) < growing.STRAY**2
    six = (rounded[:, :, None] == HEXAGON).all(axis=3).any(axis=2) & growth.placed[j]
    told = (rounded == growth.labels[j] - growth.labels[i, None]).all(axis=2)
    told &= patch[j] == patch[i, None]
    first, k = np.nonzero(six & close)
    ends = np.sort(np.stack([i[first], j[first, k]], axis=1), axis=1)
    pairs, which, seen_by = np.unique(ends, axis=0, return_inverse=True, return_counts=True)
    agreed = np.zeros(len(pairs), bool)
    agreed[which[told[first, k]]] = True
    kept = agreed | (seen_by == 2)
    return pairs[kept].astype(np.int32), ~agreed[kept]
