"""Hexagonal lattices: geodesic on the unit sphere (3D) and planar (2D), with their neighbours.

A lattice site has six neighbours, but for the twelve corners of the icosahedron, which have five,
and the sites at a cut-out's border.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

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
    distance = np.linalg.norm(corners[:, None] - corners[None], axis=2)
    adjacent = np.isclose(distance, 2.0)
    faces = [f for f in combinations(range(12), 3) if all(adjacent[e] for e in combinations(f, 2))]
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


@lru_cache(maxsize=32)
def spherical_lattice(intervals: int) -> SphericalLattice:
    """Return the lattice with ``intervals`` >= 1 intervals per icosahedron edge.

    Each face carries a triangular grid: row i runs between the points at i / intervals of the two
    edges from the face's first corner, all interpolated on great circles.
    """
    corners, faces = icosahedron()
    i, j = np.tril_indices(intervals + 1)
    sites = np.concatenate(
        [
            slerp(slerp(a, b, i / intervals), slerp(a, c, i / intervals), j / np.maximum(i, 1))
            for a, b, c in corners[faces]
        ]
    )
    twins = cKDTree(sites).query_pairs(MERGE_TOLERANCE, output_type="ndarray")
    owner = np.arange(len(sites))
    np.minimum.at(owner, twins.max(axis=1), twins.min(axis=1))
    first, merged = np.unique(owner, return_inverse=True)
    upper = np.arange(len(i) - intervals - 1)  # points of a face with two points below them
    lower = upper + i[upper] + 1
    edges = np.concatenate([(upper, lower), (upper, lower + 1), (lower, lower + 1)], axis=1).T
    pairs = np.concatenate([merged[edges + f * len(i)] for f in range(20)])
    neighbours = np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int32)
    coordinates = np.stack([np.repeat(np.arange(20), len(i)), np.tile(i, 20), np.tile(j, 20)], 1)
    lattice = SphericalLattice(sites[first], coordinates[first].astype(np.int32), neighbours)
    for array in (lattice.sites, lattice.coordinates, lattice.neighbours):
        array.flags.writeable = False
    return lattice


def neighbours_among(kept: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the ``pairs`` (E, 2) int32 between sites ``kept`` (K,), ascending, renumbered."""
    among = pairs[np.isin(pairs, kept).all(axis=1)]
    return np.searchsorted(kept, among).astype(np.int32)


def planar_lattice(distance: float, angle: float, extent: float) -> np.ndarray:
    """Return the sites (N, 2) of a planar lattice with max(|x|, |y|) <= ``extent``, one at 0.

    Both basis vectors are ``distance`` > 0 long, with ``angle`` radians between them; pi / 3 is
    hexagonal.
    """
    basis = distance * np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])
    reach = int(np.ceil(extent * np.sqrt(2.0) / (distance * abs(np.sin(angle))))) + 1
    p, q = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1, 1)
    sites = p * basis[0] + q * basis[1]
    return sites[np.abs(sites).max(axis=1) <= extent]
