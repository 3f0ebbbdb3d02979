"""Scores of a probability map against the truth, voxel by voxel.

A voxel is called foreground at a probability of at least 0.5, as in ``utils.evaluation.confusion``.

Empty masks: where neither prediction nor truth holds a voxel nothing could be done wrong, so IoU
and Dice are 1; where only one is empty they are 0. Precision has no meaning when nothing was found,
recall when nothing is labelled: they are NaN then, and left out of means. So are the scores inside
a sheet that the volume does not show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from utils.evaluation.confusion import confusion, ratio


@dataclass(frozen=True)
class VoxelScores:
    """How well one volume was segmented, beside a mask of the whole sheet (the baseline); all 0..1.

    ``sheet_`` scores look at the voxels inside the sheet only, where finding the sheet earns
    nothing and columns must be told apart.
    """

    foreground: float
    """Labelled share of the volume."""
    found: float
    """Share of the volume that was called foreground."""
    iou: float
    baseline_iou: float
    dice: float
    precision: float
    """Labelled share of what was found."""
    recall: float
    """Share of the labelled voxels that was found."""
    total_error: float
    """Share of the voxels that are wrong."""
    sheet_iou: float
    sheet_baseline_iou: float
    """Labelled share of the sheet: the sheet as a prediction calls all of it foreground."""
    sheet_auc: float
    """Probability that a labelled voxel of the sheet is rated above one that is not labelled."""
    sheet_false_positive_rate: float
    """Share of the sheet's unlabelled voxels, the gaps between columns, that was called column."""


def score_voxels(
    probabilities: np.ndarray, mask: np.ndarray, sheet: np.ndarray | None
) -> VoxelScores:
    """Compare a prediction with the truth, and with what the whole sheet would score.

    Args:
        probabilities: float, 0..1, any shape.
        mask: the truth of that shape, 0/1.
        sheet: the whole-sheet mask of that shape, 0/1; None where it is not known: what is told
            by it is NaN.
    """
    lacking = sheet is None
    sheet = np.zeros_like(mask) if sheet is None else sheet
    within = sheet > 0
    whole = confusion(probabilities, mask)
    inside = confusion(probabilities[within], mask[within])
    sheet_ious = inside.iou, confusion(sheet[within], mask[within]).iou
    sheet_iou, sheet_baseline_iou = sheet_ious if within.any() else (math.nan, math.nan)
    return VoxelScores(
        foreground=(whole.tp + whole.fn) / mask.size,
        found=(whole.tp + whole.fp) / mask.size,
        iou=whole.iou,
        baseline_iou=math.nan if lacking else confusion(sheet, mask).iou,
        dice=whole.dice,
        precision=ratio(whole.tp, whole.tp + whole.fp),
        recall=ratio(whole.tp, whole.tp + whole.fn),
        total_error=whole.total_error,
        sheet_iou=sheet_iou,
        sheet_baseline_iou=sheet_baseline_iou,
        sheet_auc=area_under_curve(probabilities[within], mask[within]),
        sheet_false_positive_rate=ratio(inside.fp, inside.fp + inside.tn),
    )


def area_under_curve(ratings: np.ndarray, mask: np.ndarray) -> float:
    """Return the area under the ROC curve: the chance that foreground is rated above background.

    By ranks (Mann and Whitney 1947), ties counting one half, in n log n. ``ratings`` are any floats
    and ``mask`` 0/1, of one shape; NaN where foreground or background is missing.
    """
    foreground = np.sort(ratings[mask > 0])
    background = np.sort(ratings[mask == 0])
    below = np.searchsorted(background, foreground, side="left").sum()
    not_above = np.searchsorted(background, foreground, side="right").sum()
    return ratio(int(below + not_above), 2 * foreground.size * background.size)
