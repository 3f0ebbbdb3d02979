import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial import cKDTree

from utils.simulation.lattice import (
    icosahedron,
    neighbours_among,
    planar_lattice,
    slerp,
    spherical_lattice,
)


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
