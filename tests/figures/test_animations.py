"""Animations: what moves in them is checked on their pixels."""

from pathlib import Path

import numpy as np
from PIL import Image

from utils.figures import animations
from utils.simulation import SimulatedVolume


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
    path = animations.save_slice_gif(
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
    path = animations.save_3d_gif(small_volume, tmp_path / "d.gif", frames=6)
    frames = read_frames(path)
    assert len(frames) == 6
    half = frames[0].shape[1] // 2
    for frame in frames:
        assert count_red(frame[:, half:]) > 200
        assert count_red(frame[:, :half]) < 20
        assert count_blue(frame[:, :half]) > 100
    assert all(np.any(a != b) for a, b in zip(frames, frames[1:], strict=False))
