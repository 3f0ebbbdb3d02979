"""Scores of a probability map against the truth, voxel by voxel.

A voxel is called foreground at a probability of at least 0.5, as in ``utils.evaluation.confusion``.

Empty masks: where neither prediction nor truth holds a voxel nothing could be done wrong, so IoU
and Dice are 1; where only one is empty they are 0. Precision has no meaning when nothing was found,
recall when nothing is labelled: they are NaN then, and left out of means. So are the scores inside
a sheet that the volume does not show.
"""

import math

import numpy as np

from utils.evaluation.confusion import confusion, ratio


def score_voxels(
    probabilities: np.ndarray, mask: np.ndarray, sheet: np.ndarray | None
) -> dict[str, float]:
    """Compare a prediction with the truth, and with what the whole sheet would score; all 0..1.

    Probabilities are 0..1, the masks of truth and whole sheet 0/1, all of one shape. A sheet of
    None is not known, and what is told by it left out.

    Returns:
        ``foreground``, the labelled share of the volume, and ``found``, the share called
        foreground; ``iou``, ``dice``, ``precision``, ``recall`` and ``total_error``, the share of
        wrong voxels; ``baseline_iou`` of the whole sheet. Of the voxels inside the sheet alone,
        where finding it earns nothing and columns must be told apart: ``sheet_iou``;
        ``sheet_baseline_iou``, their labelled share; ``sheet_auc``, the probability that a labelled
        one is rated above another; and ``sheet_false_positive_rate``, the share of the gaps between
        columns that was called column. ``iou_gain`` and ``sheet_iou_gain`` over the baselines.
    """
    whole = confusion(probabilities, mask)
    scores = {
        "foreground": (whole.tp + whole.fn) / mask.size,
        "found": (whole.tp + whole.fp) / mask.size,
        "iou": whole.iou,
        "dice": whole.dice,
        "precision": ratio(whole.tp, whole.tp + whole.fp),
        "recall": ratio(whole.tp, whole.tp + whole.fn),
        "total_error": whole.total_error,
    }
    if sheet is None:
        return scores
    within = sheet > 0
    inside = confusion(probabilities[within], mask[within])
    sheet_iou = inside.iou if within.any() else math.nan
    baseline = confusion(sheet, mask).iou
    sheet_baseline = ratio(inside.tp + inside.fn, np.count_nonzero(within))
    return scores | {
        "baseline_iou": baseline,
        "sheet_iou": sheet_iou,
        "sheet_baseline_iou": sheet_baseline,
        "sheet_auc": area_under_curve(probabilities[within], mask[within]),
        "sheet_false_positive_rate": ratio(inside.fp, inside.fp + inside.tn),
        "iou_gain": whole.iou - baseline,
        "sheet_iou_gain": sheet_iou - sheet_baseline,
    }


def area_under_curve(ratings: np.ndarray, mask: np.ndarray) -> float:
    """Return the area under the ROC curve: the chance that foreground is rated above background.

    By ranks (Mann and Whitney 1947), ties counting one half, in n log n. ``ratings`` are any floats
    and ``mask`` 0/1, of one shape; NaN where foreground or background is missing.
    """
    foreground = np.sort(ratings[mask > 0])
    background = np.sort(ratings[mask == 0])
    twice = sum(np.searchsorted(background, foreground, side).sum() for side in ("left", "right"))
    return ratio(int(twice), 2 * foreground.size * background.size)
