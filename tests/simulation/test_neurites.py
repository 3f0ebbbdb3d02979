import numpy as np
from numpy.testing import assert_allclose

from utils.simulation.geometry import draw_optic_lobe
from utils.simulation.neurites import draw_control_points, evaluate_curves


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
