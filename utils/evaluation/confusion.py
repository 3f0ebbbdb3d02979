"""Segmentation metrics from pooled counts of voxels, on probabilities (not logits).

A voxel is called foreground at a probability of at least 0.5. Counts are 64-bit integers in the
order (tp, fp, fn, tn), so that they add up exactly over batches, epochs and volumes of any size
(MONAI's ``get_confusion_matrix`` counts in float32, exact only up to 2^24 voxels a sample).

Where a ratio is 0 / 0 nothing could be done wrong: IoU and Dice are 1 when neither mask nor
prediction holds a voxel, and the rates are 0 when there is no voxel to which they could apply.
"""

from __future__ import annotations

import math
import operator
from dataclasses import astuple, dataclass

import numpy as np
import torch

from utils.errors import UserError

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
