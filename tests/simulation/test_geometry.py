"""Frames, lattices, lobes and neurites."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.spatial import cKDTree

from utils.simulation.geometry import (
    GeometryError,
    axis_rotation,
    draw_control_points,
    draw_optic_lobe,
    evaluate_curves,
    icosahedron,
    mean_nearest_distance,
    neighbours_among,
    planar_lattice,
    rotate,
    rotation_to_z,
    slerp,
    spherical_frames,
    spherical_lattice,
)

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
def test_frames_are_orthonormal_and_right_handed(seed):
    directions = np.random.default_rng(seed).normal(size=(20, 3))
    e_r, e_theta, e_phi = spherical_frames(directions)
    frames = np.stack([e_r, e_theta, e_phi], axis=1)
    assert_allclose(
        np.einsum("nij,nkj->nik", frames, frames), np.eye(3)[None].repeat(20, 0), atol=1e-12
    )
    assert_allclose(np.cross(e_r, e_theta), e_phi, atol=1e-12)
    assert_allclose(e_r * np.linalg.norm(directions, axis=1, keepdims=True), directions)


def test_frames_point_along_growing_angles():
    e_r, e_theta, e_phi = spherical_frames(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]))
    assert_allclose(e_theta[0], [0, 0, -1], atol=1e-15)  # theta grows away from +z
    assert_allclose(e_phi[0], [0, 1, 0], atol=1e-15)  # phi grows from x to y
    assert_allclose(e_r[1], [0, 0, 1])
    assert_allclose(e_theta[1], [1, 0, 0], atol=1e-15)


@given(seeds)
def test_rotation_to_z_is_a_rotation_to_z(seed):
    direction = np.random.default_rng(seed).normal(size=3)
    matrix = rotation_to_z(direction)
    assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-10)
    assert_allclose(np.linalg.det(matrix), 1.0)
    assert_allclose(matrix @ direction, [0, 0, np.linalg.norm(direction)], atol=1e-10)


@pytest.mark.parametrize("direction", [[0, 0, 1.0], [0, 0, -1.0], [1e-9, 0, -1.0]])
def test_rotation_to_z_at_the_poles(direction):
    assert_allclose(rotation_to_z(np.array(direction)) @ direction, [0, 0, 1], atol=1e-6)


@pytest.mark.parametrize("axis, turned", [(0, [0, 0, 1]), (1, [0, 1, 0]), (2, [-1, 0, 0])])
def test_axis_rotation_is_right_handed_and_in_radians(axis, turned):
    assert_allclose(axis_rotation(axis, np.pi / 2) @ [0, 1, 0], turned, atol=1e-15)


def test_rotate_applies_the_matrix_to_every_row():
    rng = np.random.default_rng(0)
    matrix, vectors = rng.normal(size=(3, 3)), rng.normal(size=(7, 3))
    assert_allclose(rotate(matrix, vectors), np.array([matrix @ v for v in vectors]))


def test_icosahedron_has_twelve_unit_corners_and_twenty_equal_faces():
    corners, faces = icosahedron()
    assert corners.shape == (12, 3) and faces.shape == (20, 3)
    assert_allclose(np.linalg.norm(corners, axis=1), 1.0)
    a, b, c = (corners[faces[:, k]] for k in range(3))
    edge = 4.0 / np.sqrt(10.0 + 2.0 * np.sqrt(5.0))  # for circumradius 1
    for p, q in ((a, b), (b, c), (a, c)):
        assert_allclose(np.linalg.norm(p - q, axis=1), edge)


def test_slerp_divides_the_angle_evenly():
    t = np.linspace(0, 1, 11)
    points = slerp(np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), t)
    expected = np.array([np.cos(t * np.pi / 2), np.sin(t * np.pi / 2), 0 * t]).T
    assert_allclose(points, expected, atol=1e-12)
    assert_allclose(slerp(points[3], points[3], t), points[3][None].repeat(11, 0))


@pytest.mark.parametrize("n", [1, 2, 3, 8, 15])
def test_counts_of_sites_and_neighbours(n):
    lattice = spherical_lattice(n)
    assert len(lattice.sites) == 10 * n**2 + 2
    assert len(lattice.neighbours) == 30 * n**2
    assert_allclose(np.linalg.norm(lattice.sites, axis=1), 1.0)
    degree = np.bincount(lattice.neighbours.ravel(), minlength=len(lattice.sites))
    assert (degree == 5).sum() == 12
    assert (degree == 6).sum() == len(lattice.sites) - 12
    assert (lattice.neighbours[:, 0] < lattice.neighbours[:, 1]).all()


@pytest.mark.parametrize("n", [8, 11, 15])
def test_spacing_is_near_uniform_and_neighbours_are_the_nearest(n):
    lattice = spherical_lattice(n)
    tree = cKDTree(lattice.sites)
    distance, nearest = tree.query(lattice.sites, k=7)
    assert distance[:, 1].max() / distance[:, 1].min() < 1.5
    regular = np.bincount(lattice.neighbours.ravel()) == 6
    by_distance = {(min(k, m), max(k, m)) for k in np.flatnonzero(regular) for m in nearest[k, 1:]}
    by_lattice = {tuple(p) for p in lattice.neighbours.tolist()}
    assert len(by_distance - by_lattice) < 0.02 * len(by_lattice)


def test_coordinates_name_a_face_that_holds_the_site():
    n = 6
    lattice = spherical_lattice(n)
    corners, faces = icosahedron()
    face, i, j = lattice.coordinates.T
    assert ((0 <= j) & (j <= i) & (i <= n)).all()
    assert len(np.unique(lattice.coordinates, axis=0)) == len(lattice.sites)
    corner = corners[faces[face]]
    at_first, at_second, at_third = i == 0, (i == n) & (j == 0), (i == n) & (j == n)
    for where, k in ((at_first, 0), (at_second, 1), (at_third, 2)):
        assert where.any()
        assert_allclose(lattice.sites[where], corner[where, k], atol=1e-12)
    normal = corner.sum(axis=1)
    best = np.argmax(lattice.sites @ corners[faces].sum(axis=1).T, axis=1)
    own = np.sum(lattice.sites * normal, axis=1)
    top = np.sum(lattice.sites * corners[faces[best]].sum(axis=1), axis=1)
    assert_allclose(own, top, atol=1e-9)  # a site lies on the face whose centre is nearest


def test_neighbours_among_keeps_pairs_of_kept_sites_and_renumbers():
    pairs = np.array([[0, 1], [1, 2], [2, 5], [3, 5]], dtype=np.int32)
    assert neighbours_among(np.array([1, 2, 5]), pairs).tolist() == [[0, 1], [1, 2]]
    assert neighbours_among(np.array([0, 3]), pairs).shape == (0, 2)


@pytest.mark.parametrize("degrees", [50, 60, 90])
def test_planar_lattice_has_its_distance_and_angle(degrees):
    sites = planar_lattice(10.0, np.radians(degrees), 100.0)
    assert np.abs(sites).max() <= 100
    assert (np.abs(sites).sum(axis=1) == 0).sum() == 1
    cell = 100 * np.sin(np.radians(degrees))
    assert len(sites) == pytest.approx(204**2 / cell, rel=0.07)
    shortest = min(10.0, 20 * np.sin(np.radians(degrees) / 2))
    distance, _ = cKDTree(sites).query(sites, k=2)
    assert_allclose(distance[:, 1], shortest, rtol=1e-9)


DEFAULTS = {
    "lattice_intervals": (8, 15),
    "axis_scales": (0.7, 1.5),
    "min_columns": 100,
    "max_tries": 2000,
}


@pytest.fixture(scope="module")
def lobes():
    return [draw_optic_lobe(np.random.default_rng((7, i)), **DEFAULTS) for i in range(40)]


def test_entry_points_lie_on_the_ellipsoid(lobes):
    """The scaled e_r is the entry point seen from the centre (sphere of radius 1)."""
    for lobe in lobes:
        assert_allclose(lobe.entry_points - np.float32(lobe.centre), lobe.e_r, atol=2e-6)


def test_frames_are_the_scaled_and_turned_frames_of_the_sphere(lobes):
    for lobe in lobes:
        frames = np.stack([lobe.e_r, lobe.e_theta, lobe.e_phi], axis=2).astype(float)
        determinant = np.linalg.det(frames)
        assert_allclose(determinant, np.prod(lobe.axis_scales), rtol=1e-4)
        norms = np.linalg.norm(frames, axis=1)
        assert norms.min() > 0.7 - 1e-5 and norms.max() < 1.5 + 1e-5


def test_axes_lean_off_the_surface_normal_by_fourteen_degrees_in_the_median(lobes):
    angles = []
    for lobe in lobes:
        normal = np.cross(lobe.e_theta, lobe.e_phi)
        cosine = np.sum(normal * lobe.e_r, axis=1)
        cosine /= np.linalg.norm(normal, axis=1) * np.linalg.norm(lobe.e_r, axis=1)
        angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    assert np.median(np.concatenate(angles)) == pytest.approx(14, abs=4)


def test_kept_points_stay_in_the_margin_and_on_the_positive_side(lobes):
    for lobe in lobes:
        p = lobe.entry_points
        assert p.min() >= -0.2 - 1e-6 and p.max() <= 1.2 + 1e-6
        side = np.sum((p - np.float32(lobe.cutoff_point)) * np.float32(lobe.cutoff_normal), axis=1)
        assert side.min() > -1e-5
        assert (np.all((p >= 0) & (p <= 1), axis=1)).sum() >= 100


def test_neighbours_and_coordinates_are_the_lattice_s(lobes):
    for lobe in lobes[:10]:
        lattice = spherical_lattice(lobe.lattice_intervals + 1)
        index = {tuple(c): k for k, c in enumerate(lattice.coordinates.tolist())}
        sites = np.array([index[tuple(c)] for c in lobe.lattice_coordinates.tolist()])
        pairs = {tuple(p) for p in lattice.neighbours.tolist()}
        kept = {tuple(sorted(sites[p])) for p in lobe.lattice_neighbours}
        assert kept <= pairs
        assert len(kept) == sum(a in set(sites) and b in set(sites) for a, b in pairs)


@pytest.mark.parametrize("n", [8, 15])
def test_an_edge_of_the_icosahedron_has_one_interval_more_than_was_drawn(n):
    """On the sphere its arc of arctan 2 is cut into n + 1 equal parts."""
    sphere = DEFAULTS | {"axis_scales": (1, 1), "lattice_intervals": (n, n), "min_columns": 30}
    lobe = draw_optic_lobe(np.random.default_rng(3), **sphere)
    assert lobe.lattice_intervals == n
    face, i, j = lobe.lattice_coordinates[lobe.lattice_neighbours].T
    on_edge = (face[0] == face[1]) & (j == 0).all(axis=0)
    assert on_edge.any()
    first, second = lobe.entry_points[lobe.lattice_neighbours[on_edge]].swapaxes(0, 1)
    chord = 2 * np.sin(np.arctan(2) / (n + 1) / 2)
    assert_allclose(np.linalg.norm(first - second, axis=1), chord, rtol=1e-4)


def test_draws_spread_over_their_ranges(lobes):
    intervals = {lobe.lattice_intervals for lobe in lobes}
    assert intervals <= set(range(8, 16)) and len(intervals) >= 6
    shifts = np.array([lobe.shift for lobe in lobes])
    assert np.abs(shifts).max() <= 0.5 and np.abs(shifts).max() > 0.4
    angles = np.array([lobe.angles for lobe in lobes])
    assert angles.min() >= 0 and angles.max() <= 2 * np.pi and angles.max() > 5


def test_spacing_is_the_mean_nearest_distance():
    grid = np.stack(np.meshgrid([0, 1, 2], [0, 1, 2], [0]), axis=-1).reshape(-1, 3) * 0.25
    assert mean_nearest_distance(grid) == pytest.approx(0.25)


def test_impossible_requests_say_what_was_tried():
    with pytest.raises(
        GeometryError, match=r"at least 5000 columns.* 7 tries.*most found: \d+.*8..9"
    ):
        draw_optic_lobe(
            np.random.default_rng(0),
            lattice_intervals=(8, 9),
            axis_scales=(0.7, 1.5),
            min_columns=5000,
            max_tries=7,
        )


def de_casteljau(points: np.ndarray, t: float) -> np.ndarray:
    while len(points) > 1:
        points = (1 - t) * points[:-1] + t * points[1:]
    return points[0]


def test_curves_match_de_casteljau_and_end_on_their_ends():
    control = np.random.default_rng(3).normal(size=(4, 5, 3))
    t = np.linspace(0, 1, 9)
    curves = evaluate_curves(control, t)
    assert curves.shape == (5, 9, 3)
    for n in range(5):
        for k in range(9):
            assert_allclose(curves[n, k], de_casteljau(control[:, n], t[k]), atol=1e-12)
    assert_allclose(curves[:, 0], control[0])
    assert_allclose(curves[:, -1], control[3])


def test_control_points_follow_the_reference():
    rng = np.random.default_rng(11)
    lobe = draw_optic_lobe(
        rng, lattice_intervals=(8, 15), axis_scales=(0.7, 1.5), min_columns=100, max_tries=2000
    )
    p0, p1, p2, p3 = draw_control_points(rng, lobe).astype(float)
    assert_allclose(p0, lobe.entry_points)
    frames = np.stack([lobe.e_r, lobe.e_phi, lobe.e_theta], axis=2).astype(float)
    inward, phi, theta = np.linalg.solve(frames, (p1 - p0)[..., None])[..., 0].T
    assert -0.2 - 1e-5 < inward.min() and inward.max() < 1e-5 and inward.min() < -0.18
    for aside in (phi, theta):
        assert -1e-5 < aside.min() and aside.max() < 0.1 + 1e-5 and aside.max() > 0.09
    steps = p0 - p2  # all along one normal
    normal = steps[np.argmax(np.linalg.norm(steps, axis=1))]
    normal /= np.linalg.norm(normal)
    distance = steps @ normal
    assert_allclose(steps, distance[:, None] * normal, atol=1e-5)
    on_plane = np.abs(distance) < 1e-6
    assert on_plane.any()  # the plane passes through a column ...
    radial = lobe.e_r[on_plane].astype(float)
    assert np.abs(radial @ normal).min() < 1e-5  # ... and contains its radial direction
    ends = p3 - np.array(lobe.centre) - 0.25 * distance[:, None] * normal
    assert abs(ends.mean()) < 0.02 and 0.04 < ends.std() < 0.06
