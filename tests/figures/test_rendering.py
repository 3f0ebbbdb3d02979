"""The ray caster: what the camera sees of simple bodies, whose views are known."""

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from utils.figures.rendering import FOG, LIGHT, Camera, cast, smooth_solid


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape) + 0.5
    offset = grid - np.array(centre)[:, None, None, None]
    return (np.sum(offset**2, axis=0) <= radius**2).astype(np.float32)


@pytest.mark.parametrize("azimuth", [0.0, 1.0, 4.0])
def test_axes_are_orthonormal_and_z_is_up(azimuth: float) -> None:
    axes = Camera((8, 8, 8), azimuth).axes
    assert np.allclose(axes @ axes.T, np.eye(3))
    right, up, _ = axes
    assert right[2] == 0
    assert up[2] > 0.9


def test_light_is_a_unit_vector_in_front() -> None:
    assert np.linalg.norm(LIGHT) == pytest.approx(1.0, abs=0.01)
    assert LIGHT[2] < 0


@pytest.mark.parametrize("azimuth", np.linspace(0.0, 6.0, 5))
@pytest.mark.parametrize("zoom", [0.7, 2.0])
def test_view_holds_all_corners(azimuth: float, zoom: float) -> None:
    camera = Camera((20, 10, 15), azimuth, zoom=zoom)
    corners = np.array([[i, j, k] for i in (0, 20) for j in (0, 10) for k in (0, 15)])
    depth, rows, columns = camera.grid
    seen = camera.project(corners)
    assert np.all(seen >= 0)
    assert np.all(seen <= np.array([columns, rows, depth]))


def cast_plainly(camera: Camera, fluorescence: np.ndarray, solid: np.ndarray) -> np.ndarray:
    """The slow twin: resample both volumes onto the camera's grid, then look along its depth."""
    matrix, offset = camera.to_volume()
    glow, body = (
        affine_transform(v, matrix, offset, camera.grid, order=1, mode="grid-constant")
        for v in (fluorescence, solid)
    )
    steps = np.arange(len(glow))[:, None, None]
    glow = glow * (1.0 - FOG * steps / (len(glow) - 1))
    first = np.where((body > 0.5).any(axis=0), (body > 0.5).argmax(axis=0), len(body))
    return np.stack([np.where(steps < first, glow, 0.0).max(axis=0), glow.max(axis=0)])


@pytest.mark.parametrize("azimuth", [0.0, 0.8, 3.0])
@pytest.mark.parametrize("zoom", [1.0, 2.5])
def test_rays_see_what_resampling_sees(azimuth: float, zoom: float) -> None:
    camera = Camera((14, 12, 10), azimuth, zoom=zoom)
    rng = np.random.default_rng(0)
    fluorescence = rng.random(camera.shape, dtype=np.float32)
    solid = smooth_solid(ball(camera.shape, (7, 5, 6), 3))
    view = cast(camera, fluorescence, solid)
    in_front, whole = cast_plainly(camera, fluorescence, solid)
    assert np.allclose(view.whole, whole, atol=1e-5)
    assert np.mean(np.abs(view.in_front - in_front) > 1e-5) < 0.001  # ties at 0.5


@pytest.mark.parametrize("azimuth", [0.0, 0.8, 3.0])
@pytest.mark.parametrize("zoom", [1.0, 2.5])
def test_a_ball_is_seen_where_project_says(azimuth: float, zoom: float) -> None:
    camera = Camera((24, 20, 16), azimuth, zoom=zoom)
    centre = (17.0, 6.0, 9.0)
    body = ball(camera.shape, centre, 2.5)
    seen = cast(camera, np.zeros_like(body), smooth_solid(body)).cover
    row, column = (np.average(axis, weights=seen) + 0.5 for axis in np.indices(seen.shape))
    assert np.allclose((column, row), camera.project(np.array([centre]))[0, :2], atol=0.5)


def test_fluorescence_behind_a_solid_is_hidden_and_before_it_seen() -> None:
    shape = (24, 24, 24)
    camera = Camera(shape, azimuth=0.0, elevation=0.0)  # looks along +y
    solid = smooth_solid(ball(shape, (12, 12, 12), 4))
    column, row, _ = camera.project(np.array([[12.0, 12.0, 12.0]]))[0].astype(int)
    before = cast(camera, ball(shape, (12, 4, 12), 2), solid)
    behind = cast(camera, ball(shape, (12, 20, 12), 2), solid)
    assert before.in_front[row, column] > 0.7
    assert behind.in_front[row, column] == 0.0
    assert behind.whole[row, column] > 0.3
    assert before.whole[row, column] > behind.whole[row, column]  # dimmed with depth


def test_ball_is_lit_from_the_upper_left() -> None:
    shape = (32, 32, 32)
    camera = Camera(shape, azimuth=0.7, zoom=2.0)
    view = cast(camera, np.zeros(shape, np.float32), smooth_solid(ball(shape, (16, 16, 16), 9)))
    rows, columns = np.nonzero(view.shade)
    assert np.pi * 15**2 < len(rows) < np.pi * 20**2
    middle_row, middle_column = rows.mean(), columns.mean()
    upper_left = (rows < middle_row) & (columns < middle_column)
    lower_right = (rows > middle_row) & (columns > middle_column)
    lit = view.shade[rows, columns]
    assert lit[upper_left].mean() > 1.5 * lit[lower_right].mean()
    assert view.cover[int(middle_row), int(middle_column)] == 1.0
    assert view.cover[0, 0] == 0.0


def test_nothing_is_seen_of_an_empty_volume() -> None:
    empty = np.zeros((6, 7, 8), np.float32)
    view = cast(Camera((6, 7, 8), 0.3), empty, smooth_solid(empty))
    for picture in (view.in_front, view.whole, view.shade, view.cover):
        assert not picture.any()
