"""What a user reads at the end of an evaluation or comparison: lines of text from the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd

MOST_ROWS = 16
"""Volumes that are listed one by one."""
LOWER_IS_BETTER = ("total_error", "hd95", "hd95_um", "sheet_false_positive_rate")
COMPARED = (
    "iou",
    "sheet_iou",
    "sheet_auc",
    "dice",
    "precision",
    "recall",
    "total_error",
    "surface_dice",
    "hd95",
    "recall_rendered",
    "recall_left_out",
)
"""Scores that a comparison lists and draws, where both sides have them."""


def score_lines(scores: pd.DataFrame, means: pd.DataFrame) -> list[str]:
    """Return the prediction's scores beside the whole sheet's.

    Args:
        scores: a row a volume.
        means: over the volumes, a row a score, with its interval.
    """
    lines = [
        "               IoU, whole volume       IoU, inside the sheet       AUC there",
        "           predicted  whole sheet    predicted  whole sheet    predicted",
    ]
    for index, row in scores.head(MOST_ROWS).iterrows():
        lines.append(_table_row(f"volume {index}", row))
    if len(scores) > MOST_ROWS:
        lines.append(f"and {len(scores) - MOST_ROWS} more volumes in metrics.csv")
    if len(scores) > 1:
        for label, column in (("mean", "mean"), ("95 % from", "low"), ("95 % to", "high")):
            lines.append(_table_row(label, means[column]))
    mean = means["mean"]
    rest = ("dice", "precision", "recall", "total_error")
    words = [f"{name.replace('_', ' ')} {_shorten(mean[name])}" for name in rest]
    lines.append(f"prediction: {', '.join(words)}")
    if "hd95" in mean:
        known = "" if math.isnan(mean["hd95_um"]) else f" ({mean['hd95_um']:.3g} um)"
        dice = _shorten(mean["surface_dice"])
        lines.append(f"surfaces: HD95 {mean['hd95']:.2f} voxels{known}, surface Dice {dice}")
    for kind, name in (("rendered", "rendered columns"), ("left_out", "left-out columns")):
        lines.append(
            f"{name}: recall {_shorten(mean[f'recall_{kind}'])}; "
            f"{_shorten(mean[f'covered_{kind}'])} of them at least half covered "
            f"({scores[f'columns_{kind}'].sum():.0f} that lie at least half inside)"
        )
    gaps = _shorten(mean["sheet_false_positive_rate"])
    lines.append(f"gaps between columns: {gaps} of their voxels called column")
    gain = means.loc["iou_gain"]
    spread = "" if math.isnan(gain["low"]) else f" (95 %: {_spread(gain)})"
    lines.append(
        f"IoU of the prediction minus that of the whole sheet: {gain['mean']:+.3f}{spread}"
    )
    return lines


def compared_scores(differences: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of :data:`COMPARED`, in its order, of paired differences."""
    return differences.loc[[name for name in COMPARED if name in differences.index]]


def comparison_lines(names: Sequence[str], differences: pd.DataFrame) -> list[str]:
    """Return both sides' means, their paired differences and how often B is the better one.

    Args:
        names: of A and B.
        differences: of :func:`compared_scores`.
    """
    lines = [f"{letter} = {name}" for letter, name in zip("AB", names, strict=True)]
    head = ("score", "A", "B", "B - A", "95 % interval", "B better in", "Wilcoxon p")
    lines.append(_comparison_row(*head))
    for name, found in differences.iterrows():
        better = found["a_higher" if name in LOWER_IS_BETTER else "b_higher"]
        lines.append(
            _comparison_row(
                name.replace("_", " "),
                _shorten(found["a"]),
                _shorten(found["b"]),
                _shorten(found["mean"], "+.3f"),
                _spread(found),
                f"{better:.0f} of {found['volumes']:.0f}",
                _shorten(found["p_value"], ".2g"),
            )
        )
    return lines


def _table_row(label: str, scores: Mapping[str, float]) -> str:
    names = ("iou", "baseline_iou", "sheet_iou", "sheet_baseline_iou", "sheet_auc")
    return "{:<11}{:>9}{:>13}{:>13}{:>13}{:>13}".format(
        label, *(_shorten(scores[name]) for name in names)
    )


def _comparison_row(*cells: str) -> str:
    return "{:<18}{:>8}{:>9}{:>9}{:>20}{:>14}{:>12}".format(*cells)


def _spread(interval: Mapping[str, float]) -> str:
    low, high = interval["low"], interval["high"]
    return "-" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"


def _shorten(score: float, form: str = ".3f") -> str:
    """Return ``score`` with three decimals or in another form, a dash where it is NaN."""
    return "-" if math.isnan(score) else format(score, form)
