"""Scores of (p, q) found against the true ones: neighbour pairs, modulo what nobody can know.

Origin and orientation of a lattice are free, so the steps between neighbours are compared, under
one symmetry for each part of the lattice that one true chart and one found patch share.
"""

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from utils.columns.diagonal import HEXAGON
from utils.evaluation.confusion import ratio

_ENTRIES = np.indices((7,) * 4).reshape(2, 2, -1).transpose(2, 0, 1) - 3
_UNIMODULAR = _ENTRIES[np.abs(np.rint(np.linalg.det(_ENTRIES))) == 1]
ANY_BASIS = _UNIMODULAR[np.argsort(np.abs(_UNIMODULAR).sum(axis=(1, 2)), kind="stable")]
"""Changes of basis (C, 2, 2): of determinant +-1 with entries up to 3, small ones first. A lattice
that was found in one further away counts as wrong."""
TWELVE = ANY_BASIS[
    np.isin(HEXAGON @ ANY_BASIS.transpose(0, 2, 1) @ [10, 1], HEXAGON @ [10, 1]).all(axis=1)
]
"""The (12, 2, 2) symmetries that map the six neighbours onto themselves."""


def true_pairs(pq: np.ndarray) -> np.ndarray:
    """Return the pairs (E, 2) k < l of neighbours among (p, q) (N, 2) of one chart."""
    pq = np.asarray(pq, np.int64)
    keys = pq @ [2**31, 1]
    order = np.argsort(keys)
    pairs = [np.empty((0, 2), np.int64)]
    for step in HEXAGON[:3] if len(pq) else ():
        wanted = keys + step @ [2**31, 1]
        at = order[np.searchsorted(keys, wanted, sorter=order).clip(max=len(pq) - 1)]
        there = np.flatnonzero(keys[at] == wanted)
        pairs.append(np.sort(np.stack([there, at[there]], axis=1), axis=1))
    return np.concatenate(pairs)


def score_lattice(
    patch: np.ndarray,
    pq: np.ndarray,
    truth: np.ndarray,
    *,
    pairs: np.ndarray | None = None,
    cut: np.ndarray | None = None,
) -> dict[str, float]:
    """Return how many neighbour pairs among found columns have the right step.

    Args:
        patch: (N,) int, found patch of each column that was matched with a true one; 0: none.
        pq: (N, 2) int, found coordinates.
        truth: (N, 2) int true (p, q) of one chart, or (N, 3) int (face, i, j), many charts.
        pairs: (E, 2) true pairs of neighbours; None: those of the one chart.
        cut: (F, 2) pairs of neighbours that lie across a cut from a defect that was named.

    Returns:
        ``pairs``: true pairs of which both columns were found; ``pairs_placed``: share of them with
        both in one patch and not cut, which alone are judged; ``pairs_cut``: share of them that is
        cut; ``pairs_right`` and ``pairs_right_any_basis``: share of the judged ones with the right
        step, under the best of the twelve symmetries and of all bases. A pair of columns on two
        faces has no step in one chart: it is right if the found step leads to a neighbour under
        the symmetry of either face. NaN where there is nothing to judge.
    """
    chart = np.zeros(len(truth), np.int64) if truth.shape[1] == 2 else truth[:, 0].astype(np.int64)
    place, pq = truth[:, -2:].astype(np.int64), pq.astype(np.int64)
    pairs = true_pairs(place) if pairs is None else np.sort(np.asarray(pairs, np.int64), axis=1)
    n = len(truth)
    is_cut = np.zeros(len(pairs), bool)
    if cut is not None:
        is_cut = np.isin(pairs @ [n, 1], np.sort(cut, axis=1) @ [n, 1])
    joined = (patch[pairs] > 0).all(axis=1) & (patch[pairs[:, 0]] == patch[pairs[:, 1]]) & ~is_cut
    judged = pairs[joined]
    wanted, found = (x[judged[:, 1]] - x[judged[:, 0]] for x in (place, pq))
    joining = judged[chart[judged[:, 0]] == chart[judged[:, 1]]].T
    graph = coo_array((np.ones(joining.shape[1]), joining), shape=(n, n))
    part = connected_components(graph, directed=False)[1]  # of the lattice, for each column
    scores = {
        "pairs": float(len(pairs)),
        "pairs_placed": ratio(len(judged), len(pairs)),
        "pairs_cut": ratio(int(is_cut.sum()), len(pairs)),
    }
    for name, bases in (("pairs_right", TWELVE), ("pairs_right_any_basis", ANY_BASIS)):
        right = _right(part[judged], wanted, found, bases)
        scores[name] = ratio(int(right.sum()), len(judged))
    return scores


def _right(
    part: np.ndarray, wanted: np.ndarray, found: np.ndarray, bases: np.ndarray
) -> np.ndarray:
    """Return which ``found`` steps (E, 2) are the ``wanted`` ones (E, 2) in the best of ``bases``.

    ``part`` (E, 2) holds the part of both columns; each part has its own best basis.
    """
    within = part[:, 0] == part[:, 1]
    right = np.zeros(len(part), bool)
    for here in np.unique(part):
        inside = within & (part[:, 0] == here)
        agrees = (wanted[inside] @ bases.transpose(0, 2, 1) == found[inside]).all(axis=2)
        best = bases[agrees.sum(axis=1).argmax()]
        right[inside] = agrees[agrees.sum(axis=1).argmax()]
        over = ~within & (part == here).any(axis=1)
        right[over] |= (found[over][:, None] == HEXAGON @ best.T).all(axis=2).any(axis=1)
    return right
