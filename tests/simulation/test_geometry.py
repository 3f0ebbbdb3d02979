import numpy as np
import pytest
from numpy.testing import assert_allclose

from utils.simulation.geometry import GeometryError, draw_optic_lobe, mean_nearest_distance
from utils.simulation.lattice import spherical_lattice

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
