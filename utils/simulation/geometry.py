"""The optic lobe's geometry: a randomly placed cut-out of a lattice on an ellipsoid.

Unit cube coordinates, axis order (x, y, z), the origin at a corner of the cube. The sphere's frame
vectors are scaled with the ellipsoid's axes, so that they are neither unit nor orthogonal; every
length laid along one of them is thereby multiplied by its norm.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from utils.errors import UserError
from utils.simulation.coordinates import axis_rotation, rotate, rotation_to_z, spherical_frames
from utils.simulation.lattice import neighbours_among, spherical_lattice

KEPT_MARGIN = 0.2  # entry points up to this far outside the unit cube are kept
MAX_SHIFT = 0.5  # the anchor is shifted by up to this much per axis from the cube's centre


class GeometryError(UserError):
    """No geometry with the requested number of columns was found."""


@dataclass(frozen=True)
class LobeParameters:
    """Where an ellipsoid lies and what is cut out of it; numbers and tuples of three floats."""

    lattice_intervals: int  # n as drawn; an icosahedron edge has n + 1 intervals
    axis_scales: tuple[float, float, float]
    shift: tuple[float, float, float]
    angles: tuple[float, float, float]  # turns about z, y, x in radians, in this order
    centre: tuple[float, float, float]  # centre of the ellipsoid, where the neurites run to
    cutoff_point: tuple[float, float, float]
    cutoff_normal: tuple[float, float, float]
    tries: int  # geometries drawn until this one was accepted
    spacing: float  # mean nearest-neighbour distance of the entry points


@dataclass(frozen=True)
class OpticLobe(LobeParameters):
    """A placed ellipsoid cut-out with N columns; arrays are float32 unless they say otherwise."""

    entry_points: np.ndarray  # (N, 3) on the ellipsoid
    e_r: np.ndarray  # (N, 3) column axis, outward, of norm 0.7..1.5 by default
    e_theta: np.ndarray  # (N, 3)
    e_phi: np.ndarray  # (N, 3)
    lattice_coordinates: np.ndarray  # (N, 3) int32: face, i, j
    lattice_neighbours: np.ndarray  # (E, 2) int32 pairs of adjacent columns


def draw_optic_lobe(
    rng: np.random.Generator,
    lattice_intervals: tuple[int, int],
    axis_scales: tuple[float, float],
    min_columns: int,
    max_tries: int,
) -> OpticLobe:
    """Draw geometries until one has at least ``min_columns`` entry points inside the unit cube.

    An ellipsoid is drawn, a random site of it brought to the cube's centre, shifted, and all of it
    turned; then a plane through a random column, its normal tangential, keeps its positive side.
    An icosahedron edge has n + 1 intervals, n drawn from ``lattice_intervals`` (low, high),
    inclusive. Raises GeometryError if none of ``max_tries`` geometries had enough columns.
    """
    least, most = max(min_columns, 2), 0
    for tries in range(1, max_tries + 1):
        n = int(rng.integers(lattice_intervals[0], lattice_intervals[1] + 1))
        scales = rng.uniform(*axis_scales, size=3)
        lattice = spherical_lattice(n + 1)
        anchor = scales * lattice.sites[rng.integers(len(lattice.sites))]
        shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, size=3)
        angles = rng.uniform(0.0, 2.0 * np.pi, size=3)
        matrix, centre = _turn_and_centre(anchor, shift, angles)
        points = rotate(matrix, scales * lattice.sites) + centre
        kept = np.flatnonzero(
            np.all((points >= -KEPT_MARGIN) & (points <= 1 + KEPT_MARGIN), axis=1)
        )
        inside = _count_inside(points[kept])
        if inside >= least:
            frames = spherical_frames(lattice.sites[kept])
            e_r, e_theta, e_phi = (rotate(matrix, scales * vectors) for vectors in frames)
            k = rng.integers(len(kept))
            w_phi, w_theta = rng.uniform(0.0, 1.0, size=2)
            point, normal = points[kept[k]], w_phi * e_phi[k] + w_theta * e_theta[k]
            side = np.sum((points[kept] - point) * normal, axis=1) >= 0
            kept = kept[side]
            inside = _count_inside(points[kept])
        if inside >= least:
            entry_points = points[kept].astype(np.float32)
            return OpticLobe(
                lattice_intervals=n,
                axis_scales=tuple(scales.tolist()),
                shift=tuple(shift.tolist()),
                angles=tuple(angles.tolist()),
                centre=tuple(centre.tolist()),
                cutoff_point=tuple(point.tolist()),
                cutoff_normal=tuple(normal.tolist()),
                tries=tries,
                spacing=mean_nearest_distance(entry_points),
                entry_points=entry_points,
                e_r=e_r[side].astype(np.float32),
                e_theta=e_theta[side].astype(np.float32),
                e_phi=e_phi[side].astype(np.float32),
                lattice_coordinates=lattice.coordinates[kept],
                lattice_neighbours=neighbours_among(kept, lattice.neighbours),
            )
        most = max(most, inside)
    raise GeometryError(
        f"no geometry with at least {min_columns} columns inside the cube in {max_tries} tries "
        f"(most found: {most}; lattice intervals {lattice_intervals[0]}..{lattice_intervals[1]}, "
        f"axis scales {axis_scales[0]}..{axis_scales[1]}): ask for fewer columns or a finer lattice"
    )


def _turn_and_centre(
    anchor: np.ndarray, shift: np.ndarray, angles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return (3, 3) and (3,): matrix (axis_scales * x) + centre is where site x of the sphere lies.

    ``anchor`` (3,) comes to the cube's centre and +z, is shifted, and turned about the corner.
    """
    upright = rotation_to_z(anchor)
    centre = 0.5 + shift - rotate(upright, anchor[None])[0]
    turn = np.eye(3)
    for axis, angle in zip((2, 1, 0), angles, strict=True):
        turn = rotate(axis_rotation(axis, angle), turn.T).T
    return rotate(turn, upright.T).T, rotate(turn, centre[None])[0]


def _count_inside(points: np.ndarray) -> int:
    return int(np.all((points >= 0) & (points <= 1), axis=1).sum())


def mean_nearest_distance(points: np.ndarray) -> float:
    """Return the mean distance of each of ``points`` (N >= 2, 3) to its nearest neighbour."""
    distances, _ = cKDTree(points).query(points, k=2)
    return float(distances[:, 1].mean())
