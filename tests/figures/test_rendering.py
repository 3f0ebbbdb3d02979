"""Turning views: what the camera sees of simple bodies, whose views are known."""

import numpy as np
import pytest

from utils.figures.rendering import LIGHT, camera_axes, look, project, view_shape


def ball(shape: tuple[int, int, int], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.indices(shape) + 0.5
    distance = np.linalg.norm(grid - np.array(centre)[:, None, None, None], axis=0)
    return np.clip(radius + 0.5 - distance, 0.0, 1.0).astype(np.float32)


@pytest.mark.parametrize("azimuth", [0.0, 1.0, 4.0])
def test_axes_are_orthonormal_and_z_is_up(azimuth: float) -> None:
    axes = camera_axes(azimuth)
    assert np.allclose(axes @ axes.T, np.eye(3))
    _, down, right = axes
    assert right[2] == 0
    assert down[2] < -0.9


def test_light_is_a_unit_vector_in_front() -> None:
    assert np.linalg.norm(LIGHT) == pytest.approx(1.0, abs=0.01)
    assert LIGHT[0] < 0


@pytest.mark.parametrize("azimuth", np.linspace(0.0, 6.0, 5))
def test_view_holds_all_corners(azimuth: float) -> None:
    shape = (20, 10, 15)
    corners = np.array([[i, j, k] for i in (0, 20) for j in (0, 10) for k in (0, 15)])
    seen = project(corners, shape, azimuth)
    assert np.all(seen >= 0)
    assert np.all(seen <= np.array(view_shape(shape)) - 1)


@pytest.mark.parametrize("azimuth", [0.0, 0.8, 3.0])
def test_a_ball_is_seen_where_project_says(azimuth: float) -> None:
    shape, centre = (24, 20, 16), (17.0, 6.0, 9.0)
    body = ball(shape, centre, 2.5)
    view = look(body, body, azimuth)
    _, row, column = project(np.array([centre]), shape, azimuth)[0]
    for seen in (view.cover, view.whole):
        found = [np.average(axis, weights=seen) for axis in np.indices(seen.shape)]
        assert np.allclose(found, (row, column), atol=0.5)


def test_fluorescence_behind_a_solid_is_hidden_and_before_it_seen() -> None:
    shape, azimuth = (24, 24, 24), 0.7
    away = camera_axes(azimuth)[0]
    solid = ball(shape, (12, 12, 12), 4)
    _, row, column = project(np.array([[12.0, 12.0, 12.0]]), shape, azimuth)[0].round().astype(int)
    before = look(ball(shape, 12 - 8 * away, 2), solid, azimuth)
    behind = look(ball(shape, 12 + 8 * away, 2), solid, azimuth)
    assert before.in_front[row, column] > 0.7
    assert behind.in_front[row, column] == 0.0
    assert behind.whole[row, column] > 0.3
    assert before.whole[row, column] > behind.whole[row, column]  # dimmed with depth


def test_ball_is_lit_from_the_upper_left() -> None:
    shape = (40, 40, 40)
    view = look(np.zeros(shape, np.float32), ball(shape, (20, 20, 20), 14), 0.7)
    rows, columns = np.nonzero(view.shade)
    assert np.pi * 13**2 < len(rows) < np.pi * 15**2
    middle_row, middle_column = rows.mean(), columns.mean()
    upper_left = (rows < middle_row) & (columns < middle_column)
    lower_right = (rows > middle_row) & (columns > middle_column)
    lit = view.shade[rows, columns]
    assert lit[upper_left].mean() > 1.5 * lit[lower_right].mean()
    assert view.cover[int(middle_row), int(middle_column)] == 1.0
    assert view.cover[0, 0] == 0.0


def test_nothing_is_seen_of_an_empty_volume() -> None:
    empty = np.zeros((6, 7, 8), np.float32)
    view = look(empty, empty, 0.3)
    for picture in (view.in_front, view.whole, view.shade, view.cover):
        assert not picture.any()
