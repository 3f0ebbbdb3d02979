"""The voxels that a network sees of a stack: cubes, as fine as the columns of its training ask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from utils.prediction.column_spacing import estimate_spacing
from utils.resampling import cube_factors, scaled_shape
from utils.stacks import Stack

SAME_VOXEL = 0.02  # difference of voxel edges that is not worth resampling
SCALES = (0.5, 0.63, 0.8, 1.0, 1.25, 1.6)  # those that are tried where the spacing is not certain
SAME_SPACING = 1.15  # quotient of spacings that may be the estimate's error (up to 15 %)


def network_shape(
    stack: Stack,
    scale: float | str,
    trained_spacing: float,
    *,
    by_planes: bool,
    agreement: Callable[[tuple[int, ...]], float] | None = None,
) -> tuple[tuple[int, ...], list[str]]:
    """Return the shape in which the network sees the stack, and lines that say why.

    Args:
        stack: read once if ``scale`` is ``auto``.
        scale: factor by which all axes are enlarged, or ``auto``: so that columns stand as far
            apart as in training. Where the stack does not show how far they do, the one of
            :data:`SCALES` with the largest agreement; 1 where none has any.
        trained_spacing: their distance there, in voxels.
        by_planes: leave the last axis as it is, planes are predicted one by one.
        agreement: of masks in a shape with those of mirrored windows; NaN if none is to be had.

    Raises UserError for an enlargement that cannot be meant.
    """
    reasons = []
    if scale == "auto":
        scale, found = 1.0, "voxels as they are: spacings are not measured for planes one by one"
        if not by_planes:
            scale, found = _measure_scale(stack, trained_spacing, agreement)
        reasons.append(f"scale: {found}")
    if by_planes:
        reasons.append("note: a 2D network on a stack: each plane along z is predicted by itself")
    if not stack.place.tells_ratio and len(stack.shape) == 3:
        unknown = "note: the voxel size is unknown, so voxels are taken for cubes; see --voxel_size"
        reasons.append(unknown)
    return scaled_shape(stack.shape, _factors(stack, float(scale), by_planes)), reasons


def check_enlargement(stack: Stack, scale: float | str, *, by_planes: bool) -> None:
    """Raise UserError for voxels that cannot be made cubes; reads nothing of the stack."""
    _factors(stack, 1.0 if scale == "auto" else float(scale), by_planes)


def _factors(stack: Stack, scale: float, by_planes: bool) -> tuple[float, ...]:
    """Return how much each axis is enlarged: to cubes of the finest edge, times ``scale``."""
    axes = len(stack.shape) - by_planes
    factors = cube_factors(stack.edges[:axes], scale)[:axes]
    factors = tuple(1.0 if abs(f - 1) <= SAME_VOXEL else f for f in factors)
    return (*factors, 1.0) if by_planes else factors


def _measure_scale(
    stack: Stack, trained: float, agreement: Callable[[tuple[int, ...]], float] | None
) -> tuple[float, str]:
    """Return training's column spacing by the stack's, both in voxels, and words on both."""
    found = estimate_spacing(stack)
    if found is None or not found.sure:
        guess = "" if found is None else f" (best guess: {found.describe()})"
        chosen, what = 1.0, "voxels as they are"
        if agreement is not None:
            factors = {scale: _factors(stack, scale, by_planes=False) for scale in SCALES}
            values = {s: agreement(scaled_shape(stack.shape, f)) for s, f in factors.items()}
            chosen = max(SCALES, key=lambda s: (np.nan_to_num(values[s], nan=-1.0), s == 1))
            if chosen != 1:
                what = (
                    f"enlarged {chosen:g} times, where masks agree best with those of mirrored "
                    f"windows (IoU {values[chosen]:.2f}; as voxels are {values[1.0]:.2f})"
                )
        return chosen, (
            f"{what}: no certain column spacing is seen{guess}; if you know it, give "
            f"--scale {trained:.1f} divided by the distance of neighbouring columns in voxels"
        )
    factor = trained / found.spacing
    known = f"{found.describe()}; the network knows {trained:.1f}"
    if 1 / SAME_SPACING <= factor <= SAME_SPACING:
        return 1.0, f"{known}: near enough, voxels as they are"
    return factor, f"{known}: enlarged {factor:.2f} times"
