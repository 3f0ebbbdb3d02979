"""How far the surface of a predicted mask lies from the true one: HD95 and surface Dice of MONAI.

A mask's surface is its voxels with a neighbour (of six) outside the mask; beyond the volume counts
as outside, for prediction and truth alike. Sizes are along (x, y, z).

Empty masks: where neither mask holds a voxel nothing could be done wrong, so HD95 is 0 and surface
Dice 1. Where only one is empty, surface Dice is 0 and HD95 the volume's diagonal, the largest error
that there can be: a volume in which nothing was found never betters a mean by dropping out of it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

ROUNDING = 1 + 1e-6
"""Factor on the tolerance: MONAI compares rounded distances with it."""


@dataclass(frozen=True)
class SurfaceScores:
    """Distances between the surfaces of prediction and truth."""

    hd95: float
    """95th percentile of the Hausdorff distance, voxels: the larger of both directions'."""
    surface_dice: float
    """Share of both surfaces that lies within the tolerance of the other one, 0..1."""
    hd95_um: float
    """The same in micrometres; NaN where the voxel size is unknown."""
    surface_dice_um: float
    """The same with distances in micrometres; NaN where the voxel size is unknown."""


def score_surfaces(
    found: np.ndarray,
    mask: np.ndarray,
    *,
    tolerance: float,
    voxel_size: tuple[float, ...] | None = None,
) -> SurfaceScores:
    """Compare the surfaces of two masks.

    Args:
        found: (X, Y, Z) bool, the prediction.
        mask: (X, Y, Z) bool, the truth.
        tolerance: of surface Dice, in voxels; in micrometres it is as many of the longest edge of
            a voxel, as a finer one could not be met along that axis.
        voxel_size: micrometres along x, y, z, if known.
    """
    ones = (1.0,) * mask.ndim
    hd95, dice = _compare(found, mask, ones, tolerance)
    if voxel_size is None:
        return SurfaceScores(hd95, dice, math.nan, math.nan)
    if len(set(voxel_size)) == 1:  # cubes: no need to measure again
        return SurfaceScores(hd95, dice, hd95 * voxel_size[0], dice)
    longest = tolerance * max(voxel_size)
    return SurfaceScores(hd95, dice, *_compare(found, mask, voxel_size, longest))


def _compare(
    found: np.ndarray, mask: np.ndarray, size: tuple[float, ...], tolerance: float
) -> tuple[float, float]:
    """Return HD95 and surface Dice in units of ``size``."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    if not found.any() or not mask.any():
        if found.any() == mask.any():
            return 0.0, 1.0
        return math.hypot(*(n * s for n, s in zip(mask.shape, size, strict=True))), 0.0
    pair = [torch.from_numpy(np.ascontiguousarray(m))[None, None] for m in (found, mask)]
    options = {"include_background": True, "spacing": size}  # one channel: there is no other
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 passes on its own old argument
        hd95 = compute_hausdorff_distance(*pair, percentile=95, **options)
        dice = compute_surface_dice(*pair, class_thresholds=[tolerance * ROUNDING], **options)
    return float(hd95), float(dice)
