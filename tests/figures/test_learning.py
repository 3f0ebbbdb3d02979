"""Curves of learning are drawn for any history."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.figures import learning
from utils.simulation import VolumeConfig

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
