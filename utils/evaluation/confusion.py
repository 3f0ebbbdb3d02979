"""Segmentation metrics: pooled counts of voxels at probabilities (not logits), and surfaces.

A voxel is called foreground at a probability of at least 0.5. Counts are 64-bit integers in the
order (tp, fp, fn, tn), so that they add up exactly over batches, epochs and volumes of any size
(MONAI's ``get_confusion_matrix`` counts in float32, exact only up to 2^24 voxels a sample).

Where neither mask nor prediction holds a voxel nothing could be done wrong: IoU and Dice are 1, and
0 where only one is empty. In training's metrics, rates are 0 when there is no voxel to which they
could apply. In scores of volumes, what has no meaning is NaN and left out of means: precision where
nothing was found, recall where nothing is labelled, and all inside a sheet that is not shown.

A mask's surface is its voxels with a neighbour (of six) outside the mask; beyond the volume counts
as outside, for prediction and truth alike, and so does what nobody annotated. Annotated planes that
stand alone have their surface within the plane. Sizes are along (x, y, z). The numbers are those of
MONAI's metrics. HD95 is 0 and surface Dice 1 where both masks are empty; where only one is, surface
Dice is 0 and HD95 the volume's diagonal, the largest error that there can be: a volume in which
nothing was found never betters a mean by dropping out of it.
"""

import math
import operator
from dataclasses import astuple, dataclass
from typing import Self

import numpy as np
import torch
from scipy import ndimage

from utils.errors import UserError
from utils.prediction.thresholds import best_threshold, to_levels

THRESHOLD = 0.5
ROUNDING = 1 + 1e-6  # factor on the tolerance, with which rounded distances are compared


@dataclass(frozen=True)
class Confusion:
    """Counts of voxels over any number of patches or volumes; ``+`` pools two of them."""

    tp: int = 0  # true positives: labelled and found
    fp: int = 0  # false positives: found but not labelled
    fn: int = 0  # false negatives: labelled but not found
    tn: int = 0  # true negatives: neither

    def __add__(self, other: Self) -> Self:
        return type(self)(*map(operator.add, astuple(self), astuple(other)))

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


def score_surfaces(
    found: np.ndarray,
    mask: np.ndarray,
    *,
    tolerance: float,
    voxel_size: tuple[float, ...] | None = None,
    known: np.ndarray | None = None,
) -> dict[str, float]:
    """Compare the surfaces of prediction and truth, bool (X, Y, Z) or (X, Y).

    The ``tolerance`` of surface Dice is in voxels; in micrometres it is as many of the longest edge
    of a voxel, as a finer one could not be met along that axis. ``voxel_size`` is micrometres along
    x, y, z. ``known``, bool of that shape, is where somebody has annotated (None: everywhere); both
    masks are empty elsewhere.

    Returns:
        ``hd95``, the 95th percentile of the Hausdorff distance, the larger of both directions', in
        voxels; ``surface_dice``, the share of both surfaces within the tolerance of the other one,
        0..1; and both in micrometres, ``_um``, NaN where the voxel size is unknown.
    """
    known = np.ones(mask.shape, bool) if known is None else known
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    for axis in range(mask.ndim):
        planes = np.moveaxis(known, axis, 0)
        if not (planes[1:] & planes[:-1]).any():  # no two annotated voxels touch along this axis
            np.moveaxis(cross, axis, 0)[[0, 2]] = False
    empty = not found.any(), not mask.any()
    if not any(empty):
        box = ndimage.find_objects((found | mask).view(np.int8))[0]
        surfaces = [m[box] & ~ndimage.binary_erosion(m[box], cross) for m in (found, mask)]
        ways = surfaces, surfaces[::-1]
    scores = {}
    for unit, size in (("", (1.0,) * mask.ndim), ("_um", voxel_size)):
        if size is None:
            hd95 = dice = math.nan
        elif all(empty):
            hd95, dice = 0.0, 1.0
        elif any(empty):
            hd95, dice = math.hypot(*np.multiply(mask.shape, size)), 0.0
        else:
            away = [ndimage.distance_transform_edt(~to, sampling=size)[of] for of, to in ways]
            hd95 = float(max(np.percentile(a, 95) for a in away))
            close = np.concatenate(away) <= tolerance * max(size) * ROUNDING
            dice = float(close.mean())
        scores |= {f"hd95{unit}": hd95, f"surface_dice{unit}": dice}
    return scores
