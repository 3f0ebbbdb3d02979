"""Planes of a stack with masks on them, checked on their pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.figures import stacks


def overlay(seed: int = 0) -> tuple[np.ndarray, np.ndarray, str]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((30, 20), np.uint8)
    mask[5:15, 8:12] = 1
    return rng.random((30, 20)), mask, f"plane {seed}"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_overlays_show_the_mask_in_red_and_a_coarser_image(tmp_path: Path) -> None:
    rows = [[overlay(0), overlay(1)]]
    plain = pixels(stacks.save_overlays(rows, tmp_path / "a.png", spacing=(0.5, 0.5)))
    red = (plain[..., 0] > plain[..., 1] + 60) & (plain[..., 0] > plain[..., 2] + 60)
    height, width = red.shape
    halves = [red[:, k * width // 4 : (k + 1) * width // 4].mean() for k in range(4)]
    assert halves[0] == halves[2] == 0 and min(halves[1], halves[3]) > 0.01
    coarse = pixels(stacks.save_overlays(rows, tmp_path / "b.png", spacing=(0.5, 0.5), step=5))
    blue = [p[:, : width // 4].std() for p in (plain, coarse)]
    assert blue[0] != blue[1]


def test_a_finer_image_than_there_is_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 voxel"):
        stacks.save_overlays([[overlay()]], tmp_path / "a.png", step=0.5)
