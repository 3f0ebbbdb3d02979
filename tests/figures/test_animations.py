"""Animations: what moves in them is checked on their pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.figures import animations
from utils.simulation import SimulatedVolume, VolumeConfig, sample_rng, simulate_volume


@pytest.fixture(scope="module")
def volume() -> SimulatedVolume:
    config = VolumeConfig(shape=(32, 28, 24), lattice_intervals=(4, 6), min_columns=20)
    return simulate_volume(config, sample_rng(0, 1))


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
    volume: SimulatedVolume, tmp_path: Path
) -> None:
    path = animations.save_slice_gif(volume, tmp_path / "s.gif", title="sample 1")
    frames = read_frames(path)
    assert len(frames) == volume.image.shape[2]
    half = frames[0].shape[1] // 2
    labelled = np.count_nonzero(volume.mask, axis=(0, 1))
    red = np.array([count_red(frame[24:-26, half:]) for frame in frames])
    zoom = round(264 / 32)
    assert np.allclose(red, labelled * zoom**2, rtol=0.2, atol=200)
    assert count_blue(frames[int(labelled.argmax())][:, :half]) > 100
    with Image.open(path) as animation:
        assert animation.info["loop"] == 0


def test_slice_animation_keeps_to_its_number_of_frames(
    volume: SimulatedVolume, tmp_path: Path
) -> None:
    path = animations.save_slice_gif(volume, tmp_path / "s.gif", most_frames=10)
    assert len(read_frames(path)) == 8  # every third of 24 slices


def test_turning_animation_shows_both_colours_all_around(
    volume: SimulatedVolume, tmp_path: Path
) -> None:
    path = animations.save_3d_gif(volume, tmp_path / "d.gif", frames=6, height=120)
    frames = read_frames(path)
    assert len(frames) == 6
    half = frames[0].shape[1] // 2
    for frame in frames:
        assert count_red(frame[24:, half:]) > 200
        assert count_red(frame[24:, :half]) < 20
        assert count_blue(frame[24:, :half]) > 100
    assert all(np.any(a != b) for a, b in zip(frames, frames[1:], strict=False))


def test_animations_take_fewer_colours_to_stay_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in noise]
    large = animations._save_gif(frames, tmp_path / "large.gif", 50).stat().st_size
    monkeypatch.setattr(animations, "MOST_BYTES", large * 3 // 4)
    assert animations._save_gif(frames, tmp_path / "small.gif", 50).stat().st_size < large * 3 // 4
    monkeypatch.setattr(animations, "MOST_BYTES", 100)
    with pytest.raises(ValueError, match="ask for fewer frames"):
        animations._save_gif(frames, tmp_path / "none.gif", 50)
    assert not (tmp_path / "none.gif").exists()
