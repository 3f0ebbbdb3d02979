"""Columns that were not found, proposed from the lattice: free sites with columns about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from utils.columns.diagonal import HEXAGON

LEAST_NEIGHBOURS = 4
"""Of six, that must have been found about a free site; or two opposite ones."""
CLEAR = 0.5
"""Spacings about a proposed column in which no other may stand."""
REACH = 1.0
"""Standard deviation in steps of the weight of columns about a free site."""
FARTHEST = 2
"""Steps of p and of q up to which columns are asked where the site is."""


@dataclass(frozen=True)
class Inferred:
    """M columns that the lattice asks for."""

    patch: np.ndarray
    """(M,) int32."""
    pq: np.ndarray
    """(M, 2) int32."""
    paths: np.ndarray
    """(M, D, 3) float64 micrometres at the depths that were given, mid depth first."""
    axes: np.ndarray
    """(M, 3) float64 unit: median of the neighbours' axes."""
    n_neighbors: np.ndarray
    """(M,) int32 neighbours found, 2 to 6."""


def infer_columns(
    patch: np.ndarray, pq: np.ndarray, depths: np.ndarray, axes: np.ndarray
) -> Inferred:
    """Return the columns that are missing from the lattice of those found.

    Args:
        patch: (N,) int, 0: none.
        pq: (N, 2) int.
        depths: (N, D, 3) micrometres, mid depth first.
        axes: (N, 3) unit.
    """
    found: list[Inferred] = []
    tree = cKDTree(depths[:, 0])
    for number in range(1, int(patch.max(initial=0)) + 1):
        own = np.flatnonzero(patch == number)
        sites, around = _free_sites(pq[own])
        count = (around >= 0).sum(axis=1)
        opposite = ((around[:, :3] >= 0) & (around[:, 3:] >= 0)).any(axis=1)
        asked = np.flatnonzero((count >= LEAST_NEIGHBOURS) | opposite)
        paths, spacing = places(sites[asked], pq[own], depths[own])
        clear = np.isfinite(spacing)
        clear[clear] = tree.query(paths[clear, 0])[0] > CLEAR * spacing[clear]
        asked, paths = asked[clear], paths[clear]
        told = np.where(around[asked, :, None] >= 0, axes[own][around[asked]], np.nan)
        axis = np.nanmedian(told, axis=1)
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        kind = np.full(len(asked), number, np.int32)
        counts = count[asked].astype(np.int32)
        found.append(Inferred(kind, sites[asked].astype(np.int32), paths, axis, counts))
    none = Inferred(patch[:0], pq[:0], depths[:0], axes[:0], patch[:0])
    return Inferred(
        *(
            np.concatenate([getattr(part, name) for part in (none, *found)])
            for name in ("patch", "pq", "paths", "axes", "n_neighbors")
        )
    )


def _free_sites(pq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the free sites (S, 2) beside ``pq`` (N, 2), and the rows (S, 6) about each or -1."""
    low = pq.min(axis=0) - 2
    grid = np.full(pq.max(axis=0) - low + 3, -1)
    grid[tuple((pq - low).T)] = np.arange(len(pq))
    sites = np.unique((pq[:, None] + HEXAGON).reshape(-1, 2), axis=0) - low
    sites = sites[grid[tuple(sites.T)] < 0]
    around = sites[:, None] + HEXAGON
    return sites + low, grid[around[..., 0], around[..., 1]]


def places(sites: np.ndarray, pq: np.ndarray, depths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where ``sites`` (S, 2) are at all depths, (S, D, 3), and the spacing about each (S,).

    An affine map is fitted to the columns about each site; the spacing is NaN where there is none.
    """
    steps = (pq - sites[:, None]).astype(float)
    weights = np.exp(-0.5 * (steps**2).sum(axis=2) / REACH**2)
    weights *= np.abs(steps).max(axis=2) <= FARTHEST
    design = np.concatenate([np.ones((*weights.shape, 1)), steps], axis=2)
    heavy = (weights[..., None] * design).transpose(0, 2, 1)
    square = heavy @ design
    told = np.linalg.det(square) > 1e-9  # of three columns that are not in line: 1e-6 and more
    fit = np.linalg.solve(square[told], heavy[told] @ depths.reshape(len(depths), -1))
    places, spacing = np.zeros((len(sites), *depths.shape[1:])), np.full(len(sites), np.nan)
    places[told] = fit[:, 0].reshape(-1, *depths.shape[1:])
    spacing[told] = np.sqrt(np.linalg.norm(np.cross(fit[:, 1, :3], fit[:, 2, :3]), axis=1))
    return places, spacing
