"""The pictures of an evaluation: of its extreme volumes, its columns and its conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.evaluation.column_recall import KINDS
from utils.evaluation.scored_volumes import ScoredVolume, conditions_of, pick_shown, sum_columns
from utils.evaluation.statistics import Interval
from utils.figures.evaluation import save_column_recall, save_scores_by_condition
from utils.figures.predictions import save_predictions


def save_evaluation(
    results: Sequence[ScoredVolume], means: Mapping[str, Interval], folder: Path
) -> list[Path]:
    """Draw the best and worst volumes, recall by column type and the score by conditions.

    Returns the paths of the pictures in ``folder``.
    """
    shown = pick_shown(results)
    images, masks, probabilities = zip(*(result.slices for _, result in shown), strict=True)
    titles = [
        f"{word}: volume {result.index}, IoU {result.scores['iou']:.2f}, z\u00a0=\u00a0{result.z}"
        for word, result in shown
    ]
    recalls = {
        kind: (means[f"recall_{kind}"], means[f"covered_{kind}"], sum_columns(results, kind))
        for kind in KINDS
    }
    return [
        save_predictions(images, masks, probabilities, folder / "predictions.png", titles=titles),
        save_column_recall(
            recalls, means["sheet_false_positive_rate"].mean, folder / "columns.png"
        ),
        save_scores_by_condition(
            [result.scores["iou"] for result in results],
            [result.scores["baseline_iou"] for result in results],
            conditions_of(results),
            folder / "conditions.png",
        ),
    ]
