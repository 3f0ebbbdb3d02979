"""The lattice that columns stand on: which column is which, from points and axes alone.

Axial coordinates (p, q): the six neighbours of a column are +-(1, 0), +-(0, 1) and +-(1, 1). Square
labels are grown first (:mod:`utils.columns.growing`), then a vote settles the diagonal
(:mod:`utils.columns.diagonal`). Without landmarks origin and orientation are free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.columns import growing
from utils.columns.diagonal import Vote, vote
from utils.errors import UserError

LEAST_PATCH = 7
"""Columns in the smallest patch: one and six about it; fewer stand on any lattice."""
HEXAGON = np.array([[1, 0], [0, 1], [1, 1], [-1, 0], [0, -1], [-1, -1]])
"""(6, 2) steps to the six neighbours."""


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
    """(N,) int32 neighbours found, 0 to 6."""
    pairs: np.ndarray
    """(E, 2) int32 pairs of neighbours k < l, those across a cut too."""
    cut: np.ndarray
    """(E,) bool: neighbours by the maps about them whose coordinates are not: a defect's cut."""
    steps: np.ndarray
    """(N, 3, 2) float64 micrometres in space of one step of p and of q; NaN where patch is 0."""
    votes: tuple[Vote, ...]
    """How the diagonal was settled, for patch 1, 2, ..."""


def fit_lattice(
    points: np.ndarray, axes: np.ndarray, *, paths: np.ndarray | None = None
) -> Lattice:
    """Return where columns stand in the lattice.

    Args:
        points: (N, 3) micrometres, the columns at mid depth.
        axes: (N, 3) unit vectors along the columns; either way, but all of them the same.
        paths: (N, D, 3) micrometres, the columns at D more depths, the same in all: the diagonal is
            settled at the clearest one.

    Raises:
        UserError: numbers that are not finite, or arrays that do not belong together.
    """
    points, axes = np.asarray(points, float), np.asarray(axes, float)
    depths = points[:, None] if paths is None else np.concatenate([points[:, None], paths], axis=1)
    _check(points, axes, depths)
    labels = np.zeros((len(points), 2), np.int64)
    patch, pairs, cut = np.zeros(len(points), np.int32), [np.empty((0, 2), np.int32)], [[]]
    residual, steps = np.full(len(points), np.nan), np.full((len(points), 3, 2), np.nan)
    votes: list[Vote] = []
    if len(points) >= LEAST_PATCH:
        near = growing.nearest(points)
        for growth in growing.patches(points, axes, near, LEAST_PATCH):
            i = np.flatnonzero(growth.placed)
            base, result = vote(_bases_by_depth(growth, depths, near, i))
            base = _right_handed(base, growth.bases[i] @ base, axes[i])
            growth.rebase(base, i)
            votes.append(result)
            patch[i], labels[i], steps[i] = len(votes), growth.labels[i], growth.bases[i]
            labels[i] -= labels[i[np.linalg.norm(points[i] - points[i].mean(0), axis=1).argmin()]]
            residual[i] = growing.residuals(growth, points, near, i)
            found = _neighbours(growth, points, near, i)
            pairs.append(found[0])
            cut.append(found[1])
    every = np.concatenate(pairs)
    return Lattice(
        patch=patch,
        pq=labels.astype(np.int32),
        residual=residual,
        n_neighbors=np.bincount(every.ravel(), minlength=len(points)).astype(np.int32),
        pairs=every,
        cut=np.concatenate(cut).astype(bool),
        steps=steps,
        votes=tuple(votes),
    )


def _check(points: np.ndarray, axes: np.ndarray, depths: np.ndarray) -> None:
    if points.ndim != 2 or points.shape[1:] != (3,) or axes.shape != points.shape:
        raise UserError(
            f"points {points.shape} and axes {axes.shape} of a lattice: both must be (N, 3)"
        )
    bad = ~(np.isfinite(depths).all(axis=(1, 2)) & (np.abs(axes).sum(axis=1) > 0))
    if bad.any():
        raise UserError(
            f"{bad.sum()} of {len(bad)} columns have a position or axis that is not finite, "
            f"the first in row {bad.argmax()}: leave them out"
        )


def _bases_by_depth(
    growth: growing.Growth, depths: np.ndarray, near: np.ndarray, i: np.ndarray
) -> np.ndarray:
    """Return the steps (D, A, 3, 2) of columns ``i`` at each depth, the first being mid depth."""
    around = growing.surroundings(growth, depths[:, 0], near, i)
    return np.stack(
        [
            growing.fit_maps(growth, depths[:, d], near, i, *around)[0]
            for d in range(depths.shape[1])
        ]
    )


def _right_handed(base: np.ndarray, steps: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return ``base`` with p and q swapped where (p x q) runs against the axes."""
    turn = np.einsum("ic,ic->i", np.cross(steps[:, :, 0], steps[:, :, 1]), axes)
    return base if np.sign(turn).sum() >= 0 else base[:, ::-1]


def _neighbours(
    growth: growing.Growth, points: np.ndarray, near: np.ndarray, i: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (E, 2) of neighbours among columns ``i``, and which lie across a cut.

    Two columns are neighbours where the maps of both say so; their labels then say whether the
    pair is cut.
    """
    j = near[i]
    seen = growing.steps_seen(growth, points, i, j)
    rounded = np.rint(seen).astype(np.int64)
    close = ((seen - rounded) ** 2).sum(axis=2) < growing.STRAY**2
    six = (rounded[:, :, None] == HEXAGON).all(axis=3).any(axis=2) & growth.placed[j]
    told = (rounded == growth.labels[j] - growth.labels[i, None]).all(axis=2)
    first, k = np.nonzero(six & close)
    every = np.stack([i[first], j[first, k], told[first, k]], axis=1)
    every[:, :2].sort(axis=1)
    unique, counts = np.unique(every, axis=0, return_counts=True)
    agreed = unique[(counts == 2) | (unique[:, 2] == 1)]
    last = np.append((agreed[1:, :2] != agreed[:-1, :2]).any(axis=1), True)[: len(agreed)]
    return agreed[last, :2].astype(np.int32), agreed[last, 2] == 0
