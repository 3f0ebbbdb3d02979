"""Losses between logits and binary masks, for images and volumes alike.

Logits and targets are (batch, 1, *space); targets are 0 or 1, and negative where nobody annotated.
Every loss is a float32 scalar, the mean over the batch, whatever the precision of the logits.
"""

from collections.abc import Callable, Sequence

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from utils.errors import UserError
from utils.training.options import TrainingOptions

SMOOTH = 1e-5
"""Added to both parts of a Dice ratio, as in MONAI: an empty patch predicted empty has loss 0."""
NEVER = -1e4
"""A logit whose probability, and cross entropy with a target of 0, are exactly 0 in float32."""


class AnnotatedLoss(nn.Module):
    """The sum of losses over annotated voxels, as if there were no others.

    Evaluated on float32, outside any autocast. Voxels with a negative target get the logit
    :data:`NEVER` and the target 0: they add nothing to any sum and pass no gradient. Each of the
    ``parts`` is a loss with the factor that makes its mean one over what is annotated.
    """

    def __init__(self, *parts: tuple[nn.Module, Callable[[Tensor], Tensor | int]]) -> None:
        super().__init__()
        self.losses = nn.ModuleList(loss for loss, _ in parts)
        self.factors = [factor for _, factor in parts]

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a float32 scalar; 0 where nothing is annotated."""
        with torch.autocast(logits.device.type, enabled=False):
            known = target >= 0
            logits = logits.float().masked_fill(~known, NEVER)
            target = target.float().clamp(min=0)
            parts = zip(self.losses, self.factors, strict=True)
            return torch.stack([loss(logits, target) * mean(known) for loss, mean in parts]).sum()


def of_voxels(known: Tensor) -> Tensor:
    """Return all voxels by the annotated ones."""
    return known.numel() / known.sum().clamp(min=1)


def of_samples(known: Tensor) -> Tensor:
    """Return all samples by those with an annotated voxel."""
    return len(known) / known.flatten(1).any(1).sum().clamp(min=1)


class LossByParts(nn.Module):
    """The loss of batches that hold several kinds of patches, one kind after the other.

    ``parts`` says how many of each, and so much each kind counts, however few of its voxels
    somebody has annotated: sums over whole volumes would drown those of a few planes.
    """

    def __init__(self, loss: nn.Module, parts: Sequence[int]) -> None:
        super().__init__()
        self.loss = loss
        self.parts = parts

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a batch, or of a rank's equal share of its kinds, a scalar."""
        counts = [len(target) * part // sum(self.parts) for part in self.parts]
        kinds = zip(counts, logits.split(counts), target.split(counts), strict=True)
        return torch.stack([count * self.loss(*kind) for count, *kind in kinds]).sum() / len(target)


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
    """Return the labelled share of what is annotated in the first ``crops`` items (image, mask)."""
    masks = [data[i][1] for i in range(min(crops, len(data)))]
    known = sum(int((mask >= 0).sum()) for mask in masks)
    return sum(int((mask > 0).sum()) for mask in masks) / max(known, 1)


def build_loss(options: TrainingOptions, foreground: float | None = None) -> nn.Module:
    """Return the loss that ``options.loss_type`` names.

    ``foreground`` is the labelled share of training crops, which ``weighted_bce`` needs. Raises
    UserError where it cannot be balanced.
    """
    if options.loss_type == "dice":
        dice = DiceLoss(sigmoid=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
        return AnnotatedLoss((dice, of_samples))
    if options.loss_type == "bce_dice":
        # Dice of the whole batch: a patch with few labels does not make it jump.
        dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
        # It is a ratio of sums over all voxels, and no mean that lacks a factor.
        return AnnotatedLoss((dice, lambda known: 1), (nn.BCEWithLogitsLoss(), of_voxels))
    if options.loss_type == "boundary_weighted_dice":
        loss = BoundaryWeightedDiceLoss(options.boundary_weight, options.boundary_thickness)
        return AnnotatedLoss((loss, of_samples))
    weight = None
    if options.loss_type == "weighted_bce":
        weight = torch.tensor(foreground_weight(foreground))
    return AnnotatedLoss((nn.BCEWithLogitsLoss(pos_weight=weight), of_voxels))
