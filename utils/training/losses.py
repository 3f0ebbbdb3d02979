"""Losses between logits and binary masks, for images and volumes alike.

Logits and targets are (batch, 1, *space); targets are 0 or 1. Every loss is a float32 scalar, the
mean over the batch, whatever the precision of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError
from utils.training.options import TrainingOptions

SMOOTH = 1e-5
"""Added to both parts of a Dice ratio, as in MONAI: an empty patch predicted empty has loss 0."""


class Float32Loss(nn.Module):
    """Evaluates ``loss`` on float32 logits and targets, outside any autocast."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a float32 scalar."""
        with torch.autocast(logits.device.type, enabled=False):
            return self.loss(logits.float(), target.float())


class BoundaryWeightedDiceLoss(nn.Module):
    """Soft Dice in which false positives hugging a mask weigh more (or less) than others.

    Per sample, ``1 - (2 sum(w p t) + s) / (sum(w p) + sum(w t) + s)`` with probabilities p, target
    t and s = :data:`SMOOTH`; the weight w is ``weight`` at voxels outside the mask whose distance
    to it (largest difference along an axis) is at most ``thickness`` voxels, and 1 elsewhere. A
    weight of 1 is the plain Dice loss; larger ones keep columns apart.
    """

    def __init__(self, weight: float = 1.0, thickness: int = 1) -> None:
        super().__init__()
        self.weight = weight
        self.thickness = thickness

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean over samples and channels, a scalar."""
        space = tuple(range(2, logits.ndim))
        probabilities = torch.sigmoid(logits)
        weights = 1 + (self.weight - 1) * outer_boundary(target, self.thickness)
        overlap = (weights * probabilities * target).sum(space)
        total = (weights * probabilities).sum(space) + (weights * target).sum(space)
        return (1 - (2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def outer_boundary(mask: Tensor, thickness: int) -> Tensor:
    """Return 1 where a voxel lies outside ``mask`` and at most ``thickness`` voxels away, else 0.

    The distance is the largest difference along an axis. Takes and returns
    (batch, channels, *space) with one, two or three axes of space.
    """
    dilate = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[mask.ndim - 3]
    return dilate(mask, 2 * thickness + 1, stride=1, padding=thickness) - mask


def foreground_weight(fraction: float) -> float:
    """Return (1 - f) / f, which balances a foreground share f against the background.

    Raises UserError for a share outside 0..1 (both excluded).
    """
    if not 0 < fraction < 1:
        raise UserError(
            f"label-balanced loss: a share of {fraction:.3g} of the training crops is foreground, "
            "which no weight can balance; check the training files and --background_threshold"
        )
    return (1 - fraction) / fraction


def measure_foreground(data: Sequence[tuple[Tensor, Tensor]], crops: int = 64) -> float:
    """Return the labelled share of the first ``crops`` training items (image, mask)."""
    count = min(crops, len(data))
    return sum(float(data[i][1].float().mean()) for i in range(count)) / count


def build_loss(options: TrainingOptions, foreground: float | None = None) -> nn.Module:
    """Return the loss that ``options.loss_type`` names.

    ``foreground`` is the labelled share of training crops, which ``weighted_bce`` needs. Raises
    UserError where it cannot be balanced.
    """
    if options.loss_type == "dice":
        loss: nn.Module = DiceLoss(sigmoid=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    elif options.loss_type == "bce_dice":
        # Dice of the whole batch: a patch with few labels does not make it jump.
        loss = DiceCELoss(sigmoid=True, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    elif options.loss_type == "boundary_weighted_dice":
        loss = BoundaryWeightedDiceLoss(options.boundary_weight, options.boundary_thickness)
    elif options.loss_type == "bce":
        loss = nn.BCEWithLogitsLoss()
    else:
        loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(foreground_weight(foreground)))
    return Float32Loss(loss)
