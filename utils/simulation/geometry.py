"""The optic lobe's geometry: lattices, a cut-out of one on an ellipsoid at random, its neurites.

Unit cube coordinates, axis order (x, y, z), the origin at a corner of the cube. The sphere's frame
vectors are scaled with the ellipsoid's axes, so that they are neither unit nor orthogonal; every
length laid along one of them is thereby multiplied by its norm. Angles are radians: theta is the
polar angle from +z, phi the azimuth from +x towards +y.

A site of a hexagonal lattice has six neighbours, but for the twelve corners of the icosahedron,
which have five, and the sites at a cut-out's border.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from scipy.spatial import cKDTree

from utils.errors import UserError


def spherical_frames(directions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the orthonormal local frames (e_r, e_theta, e_phi), each (N, 3), of directions.

    ``directions`` (N, 3) float64 are from the origin, none of them zero. e_r x e_theta = e_phi; on
    the z axis phi is taken as 0.
    """
    e_r = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    phi = np.arctan2(e_r[:, 1], e_r[:, 0])
    cos_phi, sin_phi = np.cos(phi), np.sin(phi)
    cos_theta, sin_theta = e_r[:, 2], np.hypot(e_r[:, 0], e_r[:, 1])
    e_theta = np.stack([cos_theta * cos_phi, cos_theta * sin_phi, -sin_theta], axis=1)
    e_phi = np.stack([-sin_phi, cos_phi, np.zeros_like(phi)], axis=1)
    return e_r, e_theta, e_phi


def axis_rotation(axis: int, angle: float) -> np.ndarray:
    """Return the (3, 3) right-handed rotation by ``angle`` radians about axis 0, 1 or 2."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = np.cos(angle)
    matrix[i, j], matrix[j, i] = -np.sin(angle), np.sin(angle)
    return matrix


def rotation_to_z(direction: np.ndarray) -> np.ndarray:
    """Return the (3, 3) rotation that turns ``direction`` (3,) to +z along the shortest arc.

    Rodrigues' formula, R = I + K + K^2 / (1 + cos), with K the cross-product matrix of
    direction x z; a direction of exactly -z is turned about x.
    """
    u = direction / np.linalg.norm(direction)
    if u[2] < -1.0 + 1e-12:
        return axis_rotation(0, np.pi)
    k = np.array([[0.0, 0.0, -u[0]], [0.0, 0.0, -u[1]], [u[0], u[1], 0.0]])
    return np.eye(3) + k + rotate(k, k.T).T / (1.0 + u[2])


def rotate(matrix: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Apply a (3, 3) ``matrix`` to each row of ``vectors`` (N, 3).

    einsum and not ``@``: no BLAS, hence the same bits on any number of cores.
    """
    return np.einsum("ij,nj->ni", matrix, vectors)


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
        # the anchor comes to the cube's centre and +z, is shifted, and turned about the corner:
        # matrix (scales * x) + centre is where site x of the sphere lies
        upright, turn = rotation_to_z(anchor), np.eye(3)
        for axis, angle in zip((2, 1, 0), angles, strict=True):
            turn = rotate(axis_rotation(axis, angle), turn.T).T
        matrix = rotate(turn, upright.T).T
        centre = rotate(turn, (0.5 + shift - rotate(upright, anchor[None])[0])[None])[0]
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


def _count_inside(points: np.ndarray) -> int:
    return int(np.all((points >= 0) & (points <= 1), axis=1).sum())


def mean_nearest_distance(points: np.ndarray) -> float:
    """Return the mean distance of each of ``points`` (N >= 2, 3) to its nearest neighbour."""
    distances, _ = cKDTree(points).query(points, k=2)
    return float(distances[:, 1].mean())


BEND_INWARD = 0.2  # p1 lies up to this far inward of the entry point, in norms of e_r
BEND_SIDEWAYS = 0.1  # p1 lies up to this far aside, in norms of e_phi and of e_theta
SPLAY = 0.25  # share of the signed distance to the sorting plane kept at the centre
END_SD = 0.05  # standard deviation of the ends about the centre, per axis


def draw_control_points(rng: np.random.Generator, lobe: OpticLobe) -> np.ndarray:
    """Draw the control points (4, N, 3) float32 of all neurites, in unit cube coordinates.

    Each is a cubic Bezier curve, t in 0..1, from a column's entry point to the ellipsoid's centre.
    p0 is the entry point; p1 is p0 bent inward and aside; p2 is the foot of p0 on a plane through
    a random column that contains that column's radial direction; p3 lies at the centre, displaced
    along the plane's normal by a share of p0's signed distance to it, and at random.
    """
    p0 = lobe.entry_points.astype(np.float64)
    n = len(p0)
    inward = rng.uniform(0.0, BEND_INWARD, size=(n, 1))
    aside = rng.uniform(0.0, BEND_SIDEWAYS, size=(2, n, 1))
    p1 = p0 - inward * lobe.e_r + aside[0] * lobe.e_phi + aside[1] * lobe.e_theta
    column = rng.integers(n)
    _, e_theta, e_phi = spherical_frames(lobe.e_r[column].astype(np.float64)[None])
    angle = rng.uniform(0.0, 2.0 * np.pi)
    normal = np.cos(angle) * e_theta[0] + np.sin(angle) * e_phi[0]
    distance = np.sum((p0 - p0[column]) * normal, axis=1, keepdims=True)
    p2 = p0 - distance * normal
    p3 = np.array(lobe.centre) + SPLAY * distance * normal + rng.normal(0.0, END_SD, size=(n, 3))
    return np.stack([p0, p1, p2, p3]).astype(np.float32)


def evaluate_curves(control_points: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Evaluate all curves at once: control points (4, N, 3), ``t`` (T,) in 0..1 -> (N, T, 3).

    Bernstein form: sum over k of binomial(3, k) t^k (1 - t)^(3 - k) p_k.
    """
    s = 1.0 - t
    weights = np.stack([s**3, 3 * t * s**2, 3 * t**2 * s, t**3])
    return np.einsum("kt,knd->ntd", weights, control_points)
