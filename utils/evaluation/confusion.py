"""Segmentation metrics from pooled counts of voxels, on probabilities (not logits).

A voxel is called foreground at a probability of at least 0.5. Counts are 64-bit integers in the
order (tp, fp, fn, tn), so that they add up exactly over batches, epochs and volumes of any size
(MONAI's ``get_confusion_matrix`` counts in float32, exact only up to 2^24 voxels a sample).

Where neither mask nor prediction holds a voxel nothing could be done wrong: IoU and Dice are 1, and
0 where only one is empty. In training's metrics, rates are 0 when there is no voxel to which they
could apply. In scores of volumes, what has no meaning is NaN and left out of means: precision where
nothing was found, recall where nothing is labelled, and all inside a sheet that is not shown.
"""

from __future__ import annotations

import math
import operator
from dataclasses import astuple, dataclass

import numpy as np
import torch

from utils.errors import UserError
from utils.prediction.whole_stack import best_threshold, to_levels

THRESHOLD = 0.5


@dataclass(frozen=True)
class Confusion:
    """Counts of voxels over any number of patches or volumes; ``+`` pools two of them."""

    tp: int = 0  # true positives: labelled and found
    fp: int = 0  # false positives: found but not labelled
    fn: int = 0  # false negatives: labelled but not found
    tn: int = 0  # true negatives: neither

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(*map(operator.add, astuple(self), astuple(other)))

    @property
    def iou(self) -> float:
        """Intersection over union, tp / (tp + fp + fn), in 0..1."""
        return ratio(self.tp, self.tp + self.fp + self.fn, empty=1.0)

    @property
    def dice(self) -> float:
        """Dice coefficient (F1), 2 tp / (2 tp + fp + fn), in 0..1."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn, empty=1.0)

    @property
    def total_error(self) -> float:
        """Share of all voxels that are wrong, in 0..1."""
        return ratio(self.fp + self.fn, sum(astuple(self)), empty=0.0)

    def metrics(self) -> dict[str, float]:
        """Return all metrics by name, each in 0..1.

        Beside those above the ``false_positive_rate``, the share of the background that is called
        foreground, and the ``false_negative_rate``, the share of the foreground that is missed.
        """
        return {
            **{name: getattr(self, name) for name in ("iou", "dice", "total_error")},
            "false_positive_rate": ratio(self.fp, self.fp + self.tn, empty=0.0),
            "false_negative_rate": ratio(self.fn, self.fn + self.tp, empty=0.0),
        }


def count_voxels(
    probabilities: torch.Tensor | np.ndarray, mask: torch.Tensor | np.ndarray
) -> torch.Tensor:
    """Return (tp, fp, fn, tn) as an int64 tensor of shape (4,), on the device of a tensor given.

    ``probabilities`` are 0..1 (a 0/1 mask does as well) and ``mask`` is 0/1, of one shape, both
    numpy or both torch; where the mask is negative nothing is counted. Raises UserError for unequal
    shapes.
    """
    found = torch.as_tensor(probabilities) >= THRESHOLD
    mask = torch.as_tensor(mask)
    labelled = mask > 0.5
    if found.shape != labelled.shape:
        raise UserError(
            f"probabilities have shape {tuple(found.shape)}, the mask {tuple(labelled.shape)}"
        )
    known = mask >= 0
    tp = (found & labelled).sum()
    fp = (found & known).sum() - tp
    fn = labelled.sum() - tp
    return torch.stack([tp, fp, fn, known.sum() - tp - fp - fn])


def confusion(
    probabilities: torch.Tensor | np.ndarray, mask: torch.Tensor | np.ndarray
) -> Confusion:
    """Return the counts of :func:`count_voxels` as a record."""
    return Confusion(*count_voxels(probabilities, mask).tolist())


def ratio(part: float, whole: int, empty: float = math.nan) -> float:
    """Return ``part / whole``, or ``empty`` where that is 0 / 0."""
    return part / whole if whole else empty


def score_voxels(
    probabilities: np.ndarray, mask: np.ndarray, sheet: np.ndarray | None
) -> dict[str, float]:
    """Compare a prediction with the truth, and with what the whole sheet would score; all 0..1.

    Probabilities are 0..1, the masks of truth and whole sheet 0/1, all of one shape. A sheet of
    None is not known, and what is told by it left out.

    Returns:
        ``foreground``, the labelled share of the volume, and ``found``, the share called
        foreground; ``iou``, ``iou_auto`` at the threshold of ``predict.py --threshold auto``,
        ``dice``, ``precision``, ``recall`` and ``total_error``, the share of wrong voxels;
        ``baseline_iou`` of the whole sheet. Of the voxels inside the sheet alone,
        where finding it earns nothing and columns must be told apart: ``sheet_iou``;
        ``sheet_baseline_iou``, their labelled share; ``sheet_auc``, the probability that a labelled
        one is rated above another; and ``sheet_false_positive_rate``, the share of the gaps between
        columns that was called column. ``iou_gain`` and ``sheet_iou_gain`` over the baselines.
    """
    whole = confusion(probabilities, mask)
    threshold = best_threshold([to_levels(probabilities)])
    scores = {
        "foreground": (whole.tp + whole.fn) / mask.size,
        "found": (whole.tp + whole.fp) / mask.size,
        "iou": whole.iou,
        "iou_auto": confusion(probabilities >= threshold, mask).iou,
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
