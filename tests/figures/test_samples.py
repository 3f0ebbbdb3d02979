"""Stills and animations of simulated samples, on their pixels; what the camera sees of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.figures import samples
from utils.figures.__main__ import main
from utils.figures.samples import LIGHT, camera_axes, look, project, view_shape
from utils.simulation import SimulatedVolume


def test_samples_are_drawn(small_volume: SimulatedVolume, tmp_path: Path) -> None:
    assert (
        samples.save_samples_panel([small_volume] * 3, tmp_path / "s.png", list("abc"))
        .stat()
        .st_size
        > 10_000
    )


def test_the_panel_is_made_by_a_command(tmp_path: Path) -> None:
    assert main(["samples-2d", "--count", "5", "--directory", str(tmp_path)]) == 0
    with Image.open(tmp_path / "samples_2d.png") as picture:
        wide, high = picture.size
        assert wide > 800 and len(np.unique(np.asarray(picture))) > 100
    main(["samples-2d", "--count", "1", "--directory", str(tmp_path)])
    with Image.open(tmp_path / "samples_2d.png") as picture:
        assert picture.size[1] < high


def read_frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as animation:
        frames = []
        for k in range(animation.n_frames):
            animation.seek(k)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    return frames


def count_red(frame: np.ndarray) -> int:
    return int(((frame[..., 0] > 90) & (frame[..., 0] > 2 * frame[..., 1:].max(axis=2))).sum())


def count_blue(frame: np.ndarray) -> int:
    return int(((frame[..., 2] > 90) & (frame[..., 2] > 1.3 * frame[..., 0])).sum())


def test_slice_animation_moves_along_z_with_blue_and_red(
    small_volume: SimulatedVolume, tmp_path: Path
) -> None:
    path = samples.save_slice_gif(
        small_volume, tmp_path / "s.gif", title="sample 1", most_frames=10
    )
    frames = read_frames(path)
    assert len(frames) == 8  # every third of 24 slices
    half = frames[0].shape[1] // 2
    labelled = np.count_nonzero(small_volume.mask, axis=(0, 1))[::3]
    red = np.array([count_red(frame[:, half:]) for frame in frames])
    assert np.corrcoef(red, labelled)[0, 1] > 0.99
    assert red.max() > 30 * labelled.max()  # pixels a voxel
    assert count_blue(frames[int(labelled.argmax())][:, :half]) > 100
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0


def test_turning_animation_shows_both_colours_all_around(
    small_volume: SimulatedVolume, tmp_path: Path
) -> None:
    path = samples.save_3d_gif(small_volume, tmp_path / "d.gif", frames=6)
    frames = read_frames(path)
    assert len(frames) == 6
    half = frames[0].shape[1] // 2
    for frame in frames:
        assert count_red(frame[:, half:]) > 200
        assert count_red(frame[:, :half]) < 20
        assert count_blue(frame[:, :half]) > 100
    assert all(np.any(a != b) for a, b in zip(frames, frames[1:], strict=False))


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
