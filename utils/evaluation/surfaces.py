"""How far the surface of a predicted mask lies from the true one: HD95 and surface Dice.

A mask's surface is its voxels with a neighbour (of six) outside the mask; beyond the volume counts
as outside, for prediction and truth alike, and so does what nobody annotated. Annotated planes that
stand alone have their surface within the plane. Sizes are along (x, y, z). The numbers are those of
MONAI's metrics.

Empty masks: where neither mask holds a voxel nothing could be done wrong, so HD95 is 0 and surface
Dice 1. Where only one is empty, surface Dice is 0 and HD95 the volume's diagonal, the largest error
that there can be: a volume in which nothing was found never betters a mean by dropping out of it.
"""

import math

import numpy as np
from scipy import ndimage

ROUNDING = 1 + 1e-6  # factor on the tolerance, with which rounded distances are compared


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
    cross = _neighbours(np.ones(mask.shape, bool) if known is None else known)
    scores = {}
    for unit, size in (("", (1.0,) * mask.ndim), ("_um", voxel_size)):
        hd95, dice = _compare(found, mask, cross, size, tolerance)
        scores |= {f"hd95{unit}": hd95, f"surface_dice{unit}": dice}
    return scores


def _neighbours(known: np.ndarray) -> np.ndarray:
    """Return which neighbours a voxel has, as a structure (3, 3, 3) or (3, 3) of bool.

    None along axes on which no two annotated voxels touch.
    """
    cross = ndimage.generate_binary_structure(known.ndim, 1)
    for axis in range(known.ndim):
        planes = np.moveaxis(known, axis, 0)
        if not (planes[1:] & planes[:-1]).any():
            np.moveaxis(cross, axis, 0)[[0, 2]] = False
    return cross


def _compare(
    found: np.ndarray,
    mask: np.ndarray,
    cross: np.ndarray,
    size: tuple[float, ...] | None,
    tolerance: float,
) -> tuple[float, float]:
    """Return HD95 and surface Dice, of a ``tolerance`` in longest edges, in units of ``size``."""
    if size is None:
        return math.nan, math.nan
    if not found.any() or not mask.any():
        if found.any() == mask.any():
            return 0.0, 1.0
        return math.hypot(*(n * s for n, s in zip(mask.shape, size, strict=True))), 0.0
    box = ndimage.find_objects((found | mask).view(np.int8))[0]
    surfaces = [m[box] & ~ndimage.binary_erosion(m[box], cross) for m in (found, mask)]
    ways = surfaces, surfaces[::-1]
    away = [ndimage.distance_transform_edt(~to, sampling=size)[of] for of, to in ways]
    close = np.concatenate(away) <= tolerance * max(size) * ROUNDING
    return float(max(np.percentile(a, 95) for a in away)), float(close.mean())
