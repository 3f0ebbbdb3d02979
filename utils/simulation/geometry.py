"""The optic lobe's geometry: a randomly placed cut-out of a lattice on an ellipsoid.

Unit cube coordinates, axis order (x, y, z), the origin at a corner of the cube. The sphere's frame
vectors are scaled with the ellipsoid's axes, so that they are neither unit nor orthogonal; every
length laid along one of them is thereby multiplied by its norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from utils.errors import UserError
from utils.simulation.coordinates import axis_rotation, rotate, rotation_to_z, spherical_frames
from utils.simulation.lattice import SphericalLattice, neighbours_among, spherical_lattice

KEPT_MARGIN = 0.2
"""Entry points up to this far outside the unit cube are kept."""
MAX_SHIFT = 0.5
"""The anchor is shifted by up to this much per axis from the cube's centre."""


class GeometryError(UserError):
    """No geometry with the requested number of columns was found."""


@dataclass(frozen=True)
class OpticLobe:
    """A placed ellipsoid cut-out with N columns; arrays are float32 unless they say otherwise."""

    entry_points: np.ndarray
    """(N, 3) on the ellipsoid."""
    e_r: np.ndarray
    """(N, 3) column axis, outward, of norm 0.7..1.5 by default."""
    e_theta: np.ndarray
    """(N, 3)."""
    e_phi: np.ndarray
    """(N, 3)."""
    lattice_coordinates: np.ndarray
    """(N, 3) int32: face, i, j."""
    lattice_neighbours: np.ndarray
    """(E, 2) int32 pairs of adjacent columns."""
    spacing: float
    """Mean nearest-neighbour distance of the entry points."""
    lattice_intervals: int
    """n as drawn; an icosahedron edge has n + 1 intervals."""
    axis_scales: tuple[float, float, float]
    shift: tuple[float, float, float]
    angles: tuple[float, float, float]
    centre: tuple[float, float, float]
    cutoff_point: tuple[float, float, float]
    cutoff_normal: tuple[float, float, float]
    tries: int


@dataclass(frozen=True)
class _Placement:
    """Drawn placement of an ellipsoid: site x becomes matrix (axis_scales * x) + centre."""

    lattice_intervals: int
    axis_scales: np.ndarray
    shift: np.ndarray
    angles: np.ndarray
    matrix: np.ndarray
    centre: np.ndarray


def draw_optic_lobe(
    rng: np.random.Generator,
    *,
    lattice_intervals: tuple[int, int],
    axis_scales: tuple[float, float],
    min_columns: int,
    max_tries: int,
) -> OpticLobe:
    """Draw geometries until one has at least ``min_columns`` entry points inside the unit cube.

    Args:
        rng: source of all draws.
        lattice_intervals: (low, high) of n, inclusive; an icosahedron edge has n + 1 intervals.
        axis_scales: (low, high) of the scale of each ellipsoid axis.
        min_columns: least number of entry points inside the cube.
        max_tries: geometries drawn before giving up.

    Raises:
        GeometryError: none of ``max_tries`` geometries had enough columns.
    """
    most = 0
    for tries in range(1, max_tries + 1):
        placement = _draw_placement(rng, lattice_intervals, axis_scales)
        sites = _lattice(placement.lattice_intervals).sites
        points = rotate(placement.matrix, placement.axis_scales * sites) + placement.centre
        kept = np.flatnonzero(
            np.all((points >= -KEPT_MARGIN) & (points <= 1 + KEPT_MARGIN), axis=1)
        )
        inside = np.all((points[kept] >= 0) & (points[kept] <= 1), axis=1).sum()
        if inside < max(min_columns, 2):
            most = max(most, int(inside))
            continue
        frames = _scaled_frames(sites[kept], placement)
        point, normal = _draw_cutoff(rng, points[kept], frames)
        side = np.sum((points[kept] - point) * normal, axis=1) >= 0
        inside = np.all((points[kept][side] >= 0) & (points[kept][side] <= 1), axis=1).sum()
        if inside >= max(min_columns, 2):
            cut_frames = [f[side] for f in frames]
            return _optic_lobe(placement, points, kept[side], cut_frames, point, normal, tries)
        most = max(most, int(inside))
    raise GeometryError(
        f"no geometry with at least {min_columns} columns inside the cube in {max_tries} tries "
        f"(most found: {most}; lattice intervals {lattice_intervals[0]}..{lattice_intervals[1]}, "
        f"axis scales {axis_scales[0]}..{axis_scales[1]}): ask for fewer columns or a finer lattice"
    )


def _draw_placement(
    rng: np.random.Generator, intervals: tuple[int, int], scales: tuple[float, float]
) -> _Placement:
    """Draw an ellipsoid, bring a random site to the cube's centre, shift it, turn it."""
    n = int(rng.integers(intervals[0], intervals[1] + 1))
    axis_scales = rng.uniform(*scales, size=3)
    sites = _lattice(n).sites
    anchor = axis_scales * sites[rng.integers(len(sites))]
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=3)
    angles = rng.uniform(0.0, 2.0 * np.pi, size=3)
    upright = rotation_to_z(anchor)
    centre = 0.5 + shift - rotate(upright, anchor[None])[0]
    turn = np.eye(3)
    for axis, angle in zip((2, 1, 0), angles, strict=True):
        turn = rotate(axis_rotation(axis, angle), turn.T).T
    matrix = rotate(turn, upright.T).T
    return _Placement(n, axis_scales, shift, angles, matrix, rotate(turn, centre[None])[0])


def _lattice(n: int) -> SphericalLattice:
    """Return the lattice of a drawn n: as in the reference, n + 1 intervals an icosahedron edge."""
    return spherical_lattice(n + 1)


def _scaled_frames(sites: np.ndarray, placement: _Placement) -> list[np.ndarray]:
    """Return (e_r, e_theta, e_phi) of the sites, scaled with the ellipsoid's axes and turned."""
    return [
        rotate(placement.matrix, placement.axis_scales * vectors)
        for vectors in spherical_frames(sites)
    ]


def _draw_cutoff(
    rng: np.random.Generator, points: np.ndarray, frames: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a plane through a random point, its normal tangential: (point (3,), normal (3,))."""
    k = rng.integers(len(points))
    w_phi, w_theta = rng.uniform(0.0, 1.0, size=2)
    _, e_theta, e_phi = frames
    return points[k], w_phi * e_phi[k] + w_theta * e_theta[k]


def _optic_lobe(
    placement: _Placement,
    points: np.ndarray,
    kept: np.ndarray,
    frames: list[np.ndarray],
    cutoff_point: np.ndarray,
    cutoff_normal: np.ndarray,
    tries: int,
) -> OpticLobe:
    lattice = _lattice(placement.lattice_intervals)
    entry_points = points[kept].astype(np.float32)
    e_r, e_theta, e_phi = (f.astype(np.float32) for f in frames)
    return OpticLobe(
        entry_points=entry_points,
        e_r=e_r,
        e_theta=e_theta,
        e_phi=e_phi,
        lattice_coordinates=lattice.coordinates[kept],
        lattice_neighbours=neighbours_among(kept, lattice.neighbours),
        spacing=mean_nearest_distance(entry_points),
        lattice_intervals=placement.lattice_intervals,
        axis_scales=_triple(placement.axis_scales),
        shift=_triple(placement.shift),
        angles=_triple(placement.angles),
        centre=_triple(placement.centre),
        cutoff_point=_triple(cutoff_point),
        cutoff_normal=_triple(cutoff_normal),
        tries=tries,
    )


def mean_nearest_distance(points: np.ndarray) -> float:
    """Return the mean distance of each of ``points`` (N >= 2, 3) to its nearest neighbour."""
    distances, _ = cKDTree(points).query(points, k=2)
    return float(distances[:, 1].mean())


def _triple(vector: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in vector)
    return x, y, z
