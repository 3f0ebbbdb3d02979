"""Curves of learning for any history, and predictions beside the truth: rows, hits and errors."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.figures import canvas, learning
from utils.simulation import SimulatedVolume, VolumeConfig

KEYS = ("epoch", "train_loss", "valid_loss", "train_iou", "valid_iou", "lr")
HISTORY = [
    dict(zip(KEYS, values, strict=True))
    for values in [(1, 0.9, 0.8, 0.1, 0.2, 1e-3), (2, 0.5, 0.6, 0.5, 0.4, 2e-4)]
]


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:1], [], [{"epoch": 1, "valid_iou": None}]])
def test_learning_curves_are_drawn_for_any_history(history: list[dict], tmp_path: Path) -> None:
    path = learning.save_learning_curves(history, tmp_path / "new" / "curves.png")
    with Image.open(path) as picture:
        assert picture.width > 800
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]


def test_learning_curves_show_the_baseline(tmp_path: Path) -> None:
    with_line = learning.save_learning_curves(HISTORY, tmp_path / "a.png")
    without = learning.save_learning_curves(HISTORY, tmp_path / "b.png", baseline=None)
    with Image.open(with_line) as a, Image.open(without) as b:
        assert np.any(np.asarray(a) != np.asarray(b))


def test_baseline_is_that_of_disks_on_a_hexagonal_lattice() -> None:
    share = math.pi * VolumeConfig().cone_radius ** 2 / (math.sqrt(3) / 2)
    assert learning.WHOLE_SHEET_IOU == pytest.approx(share, abs=0.005)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_predictions_have_a_row_for_each_sample(
    small_volume: SimulatedVolume, dimensions: int, tmp_path: Path
) -> None:
    z = canvas.densest_slice(small_volume.mask)
    cut = (...,) if dimensions == 3 else (..., z)
    image, mask = small_volume.image[cut], small_volume.mask[cut]
    probability = mask * 0.9
    heights = []
    for count in (1, 2):
        path = learning.save_predictions(
            [image] * count,
            [mask] * count,
            [probability] * count,
            tmp_path / f"{count}.png",
            titles=[f"sample {k}" for k in range(count)],
        )
        with Image.open(path) as picture:
            heights.append(picture.height)
    assert 1.6 < heights[1] / heights[0] < 2.1


def test_predictions_without_labels_are_drawn(tmp_path: Path) -> None:
    empty = np.zeros((8, 8), dtype=np.float32)
    assert learning.save_predictions(
        [empty], [empty], [empty], tmp_path / "p.png", ["none"]
    ).exists()


def test_a_heat_map_is_compared_where_it_is_at_least_half() -> None:
    image, target = np.zeros((2, 2), np.float32), np.array([[0.9, 0.4], [0.5, 0.0]], np.float32)
    overlay = learning._compare(image, target, probability=target)
    np.testing.assert_array_equal(overlay.any(axis=2), target >= 0.5)


def test_nothing_is_wrong_where_the_truth_is_not_known() -> None:
    image, mask = np.zeros((1, 2), np.float32), np.array([[-1, 0]])
    (unknown, extra), *_ = learning._compare(image, mask, np.array([[0.9, 0.9]]))
    assert not unknown.any() and extra.argmax() == 0


def test_overlay_colours_name_hits_and_errors() -> None:
    image = np.zeros((2, 2), dtype=np.float32)
    mask = np.array([[1, 0], [1, 0]])
    probability = np.array([[0.9, 0.9], [0.1, 0.1]])
    (hit, extra), (missed, nothing) = learning._compare(image, mask, probability)
    assert hit.argmax() == 1
    assert extra.argmax() == 0
    assert missed.argmax() == 2
    assert not nothing.any()


def test_the_fullest_slice_is_compared_with_y_upwards() -> None:
    image = np.zeros((64, 40, 3), dtype=np.float32)
    image[10, 0, 1] = 1.0
    mask, probability = np.zeros_like(image), np.zeros_like(image)
    mask[10, :2, 1], probability[10, 0, 1], probability[63, 39, 1] = 1, 1, 0.5
    picture = learning.compared_slice(image, mask, probability)
    assert picture.shape == (40, 64, 3) and 0 <= picture.min() and picture.max() <= 1
    assert [picture[39, 10].argmax(), picture[0, 63].argmax(), picture[38, 10].argmax()] == [
        *(1, 0, 2),  # found, false positive, missed
    ]
    flat = learning.compared_slice(image[..., 1], mask[..., 1], probability[..., 1])
    assert np.array_equal(flat, picture)
