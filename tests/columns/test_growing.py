import numpy as np
import pytest

from tests.columns.test_lattice import disk, dome, plane
from utils.columns import growing


def test_the_nearest_points_leave_out_the_point_itself() -> None:
    points = np.repeat(np.random.default_rng(0).normal(size=(10, 3)), 3, axis=0)
    near = growing.nearest(points, 4)
    assert near.shape == (30, 4) and not (near == np.arange(30)[:, None]).any()


def test_maps_across_axes_are_right_handed_frames() -> None:
    axes = np.random.default_rng(0).normal(size=(20, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    frames = growing.across(axes)
    np.testing.assert_allclose(
        frames @ frames.transpose(0, 2, 1), np.tile(np.eye(2), (20, 1, 1)), atol=1e-12
    )
    np.testing.assert_allclose(np.cross(frames[:, 0], frames[:, 1]), axes, atol=1e-12)


def test_seers_are_the_points_that_each_is_near() -> None:
    near = growing.nearest(np.random.default_rng(0).normal(size=(30, 3)), 4)
    rows, ends = growing.seers_of(near)
    for k in range(30):
        assert rows[ends[k] : ends[k + 1]].tolist() == np.nonzero(near == k)[0].tolist()


def test_inverses_are_those_of_numpy() -> None:
    bases = np.random.default_rng(0).normal(size=(20, 3, 2))
    np.testing.assert_allclose(growing.inverses(bases), np.linalg.pinv(bases), rtol=1e-9)
    assert (growing.inverses(np.ones((1, 3, 2))) == 0).all(), "two equal steps have none"


@pytest.mark.parametrize("angle", [95.0, 120.0])
def test_the_first_cell_is_the_lattice_and_no_finer_or_coarser_one(angle: float) -> None:
    rng = np.random.default_rng(4)
    points, axes = plane(disk(5), angle=angle)
    points = points + rng.normal(0, 0.2, points.shape)
    kept = rng.random(len(points)) > 0.15
    points, axes = points[kept], axes[kept]
    bases, misfit = growing.first_bases(points, axes, growing.nearest(points))
    area = np.linalg.norm(np.cross(bases[:, :, 0], bases[:, :, 1]), axis=1)
    best = misfit < np.median(misfit)
    np.testing.assert_allclose(area[best], 49.0 * np.sin(np.radians(angle)), rtol=0.12)


def test_a_start_whose_basis_is_wrong_is_not_the_one_that_is_kept() -> None:
    points, axes = dome(disk(6), (60.0, 60.0, 60.0))
    near = growing.nearest(points)
    bases, _ = growing.first_bases(points, axes, near)
    free = np.ones(len(points), bool)
    good = growing.grow(points, near, growing.seers_of(near), 60, bases[60], free)
    double = growing.grow(points, near, growing.seers_of(near), 60, 2.0 * bases[60], free)
    assert good.placed.all() and double.placed.mean() < 0.5
    best = growing.patches(points, axes, near, 7)[0]
    assert best.placed.all()
    steps = growing.steps_seen(best, points, np.arange(len(points)), near)
    told = best.labels[near] - best.labels[:, None]
    assert (np.rint(steps) == told).mean() > 0.99


def test_points_that_are_not_free_stay_without_a_label() -> None:
    points, axes = plane(disk(4))
    near = growing.nearest(points)
    bases, _ = growing.first_bases(points, axes, near)
    free = points[:, 0] < 10.0
    start, seers = int(free.argmax()), growing.seers_of(near)
    growth = growing.grow(points, near, seers, start, bases[start], free)
    assert (growth.placed == free).all()


@pytest.mark.parametrize("seed", range(4))
def test_no_start_has_a_finer_cell_where_points_are_loose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points, axes = plane(disk(9))
    points = points + rng.normal(0, 0.15 * 7.0, points.shape)
    bases, misfit = growing.first_bases(points, axes, growing.nearest(points))
    area = np.linalg.norm(np.cross(bases[:, :, 0], bases[:, :, 1]), axis=1)
    starts = np.argsort(misfit)[: growing.STARTS]
    assert area[starts].min() > 0.7 * 49.0 * np.sin(np.radians(120))
