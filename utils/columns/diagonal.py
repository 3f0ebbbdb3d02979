"""Which diagonal of the square lattice is the hexagon's third axis, by a vote over a patch.

Real lattices are nearly square: locally the shorter diagonal need not be the hexagon's. Each column
votes for the three axes of its own cell, at each depth; the depth whose vote is clearest decides.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

HEXAGON = np.array([[1, 0], [0, 1], [1, 1], [-1, 0], [0, -1], [-1, -1]])
"""(6, 2) steps (p, q) to the six neighbours; each of the last three is opposite to one before."""
SYMMETRIES = np.array(
    [
        np.stack([a, b], axis=1)
        for a in HEXAGON
        for b in HEXAGON
        if (a + b == HEXAGON).all(axis=1).any()
    ]
)
"""(12, 2, 2) matrices that map the six neighbours to each other; the first one changes nothing."""


@dataclass(frozen=True)
class Vote:
    """How one patch settled its axes."""

    share: float
    """Votes for the axes that were chosen over votes for these and the runner-up; 0.5 to 1."""
    votes: int
    """Columns that voted for either."""
    depth: int
    """Row of the positions by depth that decided: the clearest vote."""


def _superbases() -> np.ndarray:
    """Return (C, 2, 2): columns a, b so that a, b, -(a + b) are three axes, each triple once."""
    found: dict[frozenset[tuple[int, int]], np.ndarray] = {}
    for p, q, r, s in itertools.product(range(-2, 3), repeat=4):
        if p * s - q * r == 1:
            axes = [(p, r), (q, s), (p + q, r + s)]
            key = frozenset(max(axis, (-axis[0], -axis[1])) for axis in axes)
            found.setdefault(key, np.array([[p, q], [r, s]]))
    return np.array(list(found.values()))


SUPERBASES = _superbases()


def obtuse(metric: np.ndarray) -> np.ndarray:
    """Return the (2, 2) unimodular base, as columns, whose three axes are obtuse in ``metric``.

    Selling's reduction: of a, b, c with a + b + c = 0 no two then enclose less than 90 degrees, and
    they and their opposites are the six neighbours of the Voronoi cell.
    """
    axes = np.array([[1, 0, -1], [0, 1, -1]])
    for _ in range(100):
        products = axes.T @ metric @ axes
        i, j = max(((0, 1), (0, 2), (1, 2)), key=lambda pair: products[pair])
        if products[i, j] <= 1e-9 * np.trace(products):
            break
        k = 3 - i - j
        axes[:, k] = axes[:, i] - axes[:, j]
        axes[:, i] *= -1
    return axes[:, :2]


def vote(bases: np.ndarray) -> tuple[np.ndarray, Vote]:
    """Return the base (2, 2) of labels, as columns, in which the axes are p, q and p + q.

    Args:
        bases: (D, N, 3, 2) steps in space of one step of either label, at D depths, N >= 1.
    """
    metrics = np.einsum("dncb,dnca->dnba", bases, bases)
    metrics = metrics / np.sqrt(np.linalg.det(metrics))[..., None, None]
    start = obtuse(metrics.mean(axis=(0, 1)))
    metrics = start.T @ metrics @ start
    cell = np.moveaxis(np.einsum("cia,dnij,cjb->cdnab", SUPERBASES, metrics, SUPERBASES), 2, 0)
    to_third = cell.sum(axis=-1)  # a.(a + b), b.(a + b): obtuse to -(a + b) where not negative
    chosen = (cell[..., 0, 1] <= 0) & (to_third >= 0).all(axis=-1)
    counts = chosen.sum(axis=0)
    second, first = np.sort(counts, axis=0)[-2:]
    share = first / np.maximum(first + second, 1)
    depth = int(share.argmax())
    winner = int(counts[:, depth].argmax())
    votes = int(first[depth] + second[depth])
    return start @ SUPERBASES[winner], Vote(float(share[depth]), votes, depth)
