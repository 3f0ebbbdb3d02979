"""Hexagonal lattices: geodesic on the unit sphere (3D) and planar (2D), with their neighbours.

A lattice site has six neighbours, but for the twelve corners of the icosahedron, which have five,
and the sites at a cut-out's border.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial import cKDTree

MERGE_TOLERANCE = 1e-6  # sites of two faces closer than this, in radii, are one site


@dataclass(frozen=True)
class SphericalLattice:
    """Geodesic lattice of 10 m^2 + 2 sites on the unit sphere, m intervals an icosahedron edge."""

    sites: np.ndarray  # (M, 3) float64, unit vectors
    coordinates: np.ndarray
    """(M, 3) int32: the first face (0..19) that holds the site, and its grid coordinates (i, j)."""
    neighbours: np.ndarray  # (30 m^2, 2) int32 pairs of adjacent sites, smaller index first, sorted


def icosahedron() -> tuple[np.ndarray, np.ndarray]:
    """Return the 12 corners (12, 3) on the unit sphere and the 20 faces (20, 3) of them."""
    g = (1.0 + np.sqrt(5.0)) / 2.0
    corners = np.array(
        [p for s in (-1, 1) for t in (-g, g) for p in ((0, s, t), (s, t, 0), (t, 0, s))]
    )
    edge = 2.0
    distance = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    adjacent = np.isclose(distance, edge)
    faces = [
        (a, b, c)
        for a in range(12)
        for b in range(a + 1, 12)
        for c in range(b + 1, 12)
        if adjacent[a, b] and adjacent[b, c] and adjacent[a, c]
    ]
    return corners / np.linalg.norm(corners[0]), np.array(faces)


def slerp(start: np.ndarray, end: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Interpolate on the great circle between unit vectors: ``t`` (N,) in 0..1, result (N, 3).

    Shoemake 1985: sin((1 - t) w) / sin w start + sin(t w) / sin w end; equal ends give that end.
    """
    angle = np.arccos(np.clip(np.sum(start * end, axis=-1), -1.0, 1.0))
    sine = np.sin(angle)
    flat = sine < 1e-12
    safe = np.where(flat, 1.0, sine)
    first = np.where(flat, 1.0, np.sin((1.0 - t) * angle) / safe)
    second = np.where(flat, 0.0, np.sin(t * angle) / safe)
    return first[..., None] * start + second[..., None] * end


def _triangle_grid(intervals: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row i, column j <= i of a triangular grid, and its edges as pairs of grid indices."""
    i, j = np.tril_indices(intervals + 1)
    index = np.zeros((intervals + 1, intervals + 1), dtype=np.int64)
    index[i, j] = np.arange(len(i))
    a, b = np.tril_indices(intervals)
    upper, lower, right = index[a, b], index[a + 1, b], index[a + 1, b + 1]
    edges = np.concatenate(
        [np.stack(p, axis=1) for p in ((upper, lower), (upper, right), (lower, right))]
    )
    return i, j, edges


@lru_cache(maxsize=32)
def spherical_lattice(intervals: int) -> SphericalLattice:
    """Return the lattice with ``intervals`` >= 1 intervals per icosahedron edge.

    Each face carries a triangular grid: row i runs between the points at i / intervals of the two
    edges from the face's first corner, all interpolated on great circles.
    """
    corners, faces = icosahedron()
    i, j, edges = _triangle_grid(intervals)
    along_row = j / np.maximum(i, 1)
    sites = []
    for a, b, c in corners[faces]:
        left, right = slerp(a, b, i / intervals), slerp(a, c, i / intervals)
        sites.append(slerp(left, right, along_row))
    stacked = np.concatenate(sites)
    keys = np.round(stacked / MERGE_TOLERANCE).astype(np.int64)
    first, merged = _first_of_equal(keys)
    face = np.repeat(np.arange(20), len(i))
    coordinates = np.stack([face, np.tile(i, 20), np.tile(j, 20)], axis=1)[first]
    all_edges = np.concatenate([merged[edges + f * len(i)] for f in range(20)])
    pairs = np.unique(np.sort(all_edges, axis=1), axis=0)
    lattice = SphericalLattice(stacked[first], coordinates.astype(np.int32), pairs.astype(np.int32))
    for array in (lattice.sites, lattice.coordinates, lattice.neighbours):
        array.flags.writeable = False
    return lattice


def _first_of_equal(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge rows of integer ``keys`` that differ by at most one unit per axis.

    Return (M,) the index of each distinct row's first appearance, in order, and (N,) the distinct
    row that each row belongs to.
    """
    pairs = cKDTree(keys).query_pairs(2.0, output_type="ndarray")
    owner = np.arange(len(keys))
    if len(pairs):
        np.minimum.at(owner, pairs.max(axis=1), pairs.min(axis=1))
    first = np.flatnonzero(owner == np.arange(len(keys)))
    number = np.full(len(keys), -1)
    number[first] = np.arange(len(first))
    return first, number[owner]


def neighbours_among(kept: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the ``pairs`` (E, 2) int32 between sites that are ``kept`` (K,), renumbered."""
    number = np.full(max(int(pairs.max(initial=-1)), int(kept.max(initial=-1))) + 1, -1, np.int32)
    number[kept] = np.arange(len(kept), dtype=np.int32)
    renumbered = number[pairs]
    return renumbered[(renumbered >= 0).all(axis=1)]


def planar_lattice(distance: float, angle: float, extent: float) -> np.ndarray:
    """Return the sites (N, 2) of a planar lattice with max(|x|, |y|) <= ``extent``, one at 0.

    Both basis vectors are ``distance`` > 0 long, with ``angle`` radians between them; pi / 3 is
    hexagonal.
    """
    basis = distance * np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    reach = int(np.ceil(extent * np.sqrt(2.0) / (distance * abs(np.sin(angle))))) + 1
    steps = np.arange(-reach, reach + 1)
    p, q = np.meshgrid(steps, steps, indexing="ij")
    sites = p.reshape(-1, 1) * basis[0] + q.reshape(-1, 1) * basis[1]
    return sites[np.abs(sites).max(axis=1) <= extent]
