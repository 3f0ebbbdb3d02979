"""Scores over volumes are drawn whatever is known of them."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils.evaluation.statistics import Interval
from utils.figures import canvas, evaluation


def interval(mean: float, half: float = 0.1) -> Interval:
    return Interval(mean, mean - half, mean + half, 5)


def test_recall_of_columns_is_drawn_with_and_without_intervals(tmp_path: Path) -> None:
    nan = math.nan
    recalls = {
        "left_out": (interval(0.4), Interval(nan, nan, nan, 0), 0),
        "A": (Interval(0.5, nan, nan, 1), interval(0.9), 12),
    }
    path = evaluation.save_column_recall(recalls, nan, tmp_path / "columns.png")
    with Image.open(path) as picture:
        assert picture.width > 600


@pytest.mark.parametrize("count", [1, 16])
def test_scores_are_drawn_over_every_condition(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    conditions = {name: rng.random(count) for name in ("gain", "spacing_voxels", "foreground")}
    conditions["of_another_kind"] = np.ones(count)
    path = evaluation.save_scores_by_condition(
        rng.random(count), rng.random(count), conditions, tmp_path / "c.png"
    )
    with Image.open(path) as picture:
        assert picture.height > 600  # two rows


def test_a_comparison_shows_both_sides_and_no_distances(tmp_path: Path) -> None:
    drawn = []
    saved = canvas.save_figure

    def keep(figure: object, path: Path, dpi: int = 110) -> Path:
        drawn.append(figure)
        return saved(figure, path, dpi)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "save_figure", keep)
        evaluation.save_comparison(
            [0.5, 0.6],
            [0.55, 0.5],
            {"iou": interval(-0.02), "hd95": interval(3.0), "recall": interval(0.1)},
            tmp_path / "c.png",
            names=("logs/first", "x" * 100),
        )
    paired, gaps = drawn[0].axes
    assert [text.get_text() for text in gaps.get_yticklabels()] == ["IoU", "recall"]
    assert paired.get_xlabel() == "IoU of A: logs/first" and len(paired.get_ylabel()) < 60
