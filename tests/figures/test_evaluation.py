"""Scores over volumes are drawn whatever is known of them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils.evaluation.columns import KINDS
from utils.evaluation.scoring import ScoredVolume, score_volume
from utils.evaluation.tables import means_over_volumes, only_scores, table_of
from utils.figures import canvas, evaluation
from utils.simulation import SimulatedVolume


@pytest.mark.parametrize("volumes", [1, 2])
def test_recall_of_columns_is_drawn_with_and_without_intervals(
    volumes: int, tmp_path: Path
) -> None:
    row = {f"{what}_{kind}": 0.5 for what in ("recall", "covered") for kind in KINDS}
    row |= {"covered_left_out": math.nan, "sheet_false_positive_rate": math.nan}
    row |= {f"columns_{kind}": 3 for kind in KINDS}
    scores = pd.DataFrame([row] * volumes)
    means = means_over_volumes(scores, seed=0)
    path = evaluation.save_column_recall(scores, means, tmp_path / "columns.png")
    with Image.open(path) as picture:
        assert picture.width > 600


@pytest.mark.parametrize("count", [1, 16])
def test_scores_are_drawn_over_every_condition(count: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["iou", "baseline_iou", *evaluation.CONDITION_WORDS]
    scores = pd.DataFrame({name: rng.random(count) for name in names})
    scores["contrast"] = 1.0
    path = evaluation.save_scores_by_condition(scores, tmp_path / "c.png")
    with Image.open(path) as picture:
        assert picture.height > 600  # two rows


def test_an_evaluation_is_drawn_in_three_pictures(
    tmp_path: Path, small_volume: SimulatedVolume, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canvas, "save_figure", lambda figure, path: path)
    truth = small_volume.mask.astype(np.float32)
    results = [score_volume(4, small_volume, truth, seconds=1.0, tolerance=None, spacing=None)]
    scores = table_of(results)
    means = means_over_volumes(only_scores(scores), seed=0)
    paths = evaluation.save_evaluation(results, scores, means, tmp_path)
    assert [path.name for path in paths] == ["predictions.png", "columns.png", "conditions.png"]


@pytest.mark.parametrize(
    ("ious", "ranks"),
    [
        ([0.5], [1]),
        ([0.2, 0.9], [1, 2]),
        ([0.3, 0.1, 0.2, 0.5, 0.4], [1, 2, 3, 4, 5]),
        ([0.1 * k for k in range(9)], [1, 3, 5, 7, 9]),
    ],
)
def test_shown_volumes_reach_from_the_best_to_the_worst(
    ious: list[float], ranks: list[int]
) -> None:
    empty = np.zeros((2, 2))
    results = [
        ScoredVolume({"volume": index, "iou": iou}, (empty, empty, empty), 0)
        for index, iou in enumerate(ious)
    ]
    shown = evaluation.pick_shown(results)
    assert list(shown) == ranks
    ranked = sorted(ious, reverse=True)
    assert [result.row["iou"] for result in shown.values()] == [ranked[rank - 1] for rank in ranks]


def test_a_comparison_shows_both_sides(tmp_path: Path) -> None:
    drawn = []
    saved = canvas.save_figure

    def keep(figure: object, path: Path, dpi: int = 110) -> Path:
        drawn.append(figure)
        return saved(figure, path, dpi)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(canvas, "save_figure", keep)
        evaluation.save_comparison(
            pd.Series([0.5, 0.6]),
            pd.Series([0.5, 0.55], index=[1, 0]),
            tmp_path / "c.png",
            names=("logs/first", "x" * 100),
        )
    (paired,) = drawn[0].axes
    assert paired.lines[1].get_xydata().tolist() == [[0.5, 0.55], [0.6, 0.5]]
    assert paired.get_xlabel() == "IoU of A: logs/first" and len(paired.get_ylabel()) < 60
