"""The voxels that a network sees of a stack: cubes, as fine as the columns of its training ask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from utils.prediction.column_spacing import estimate_spacing
from utils.resampling import cube_factors, scaled_shape
from utils.stacks import Stack

SAME_VOXEL = 0.02  # difference of voxel edges that is not worth resampling
SCALES = (0.5, 0.63, 0.8, 1.0, 1.25, 1.6)  # those that are tried where the spacing is not certain
ENLARGED = 0.05
"""By how much more masks of an enlarged stack must agree to be taken.

They are smoother, and agree more whatever they are worth. Of 16 wide and medulla volumes three were
enlarged 1.25 times for 0.01 to 0.03 more, and gained 0.01 of IoU; a stack of coarse noise along z,
for 0.02 more, lost 0.2."""
SAME_SPACING = 1.35
"""Quotient of the stack's spacing and training's up to which voxels stay as they are.

Volumes of the default preset spread so far about their median, and a network knows all of them:
scales of 1.16 to 1.34, which brought their columns to the median, lost ``columns3d_reference`` 0.00
to 0.15 of IoU. The estimate's error is up to 15 %."""


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
            apart as in training, if masks agree more then. Where the stack does not show how far
            they do, the one of :data:`SCALES` with the largest agreement; 1 where none has any.
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
    """Return the scale for a network that knows ``trained`` voxels from column to column, and why.

    A network may know other distances as well as its typical one: ``columns3d`` lost 0.10 of IoU on
    six default volumes to scales of 0.6 to 0.9 that brought their columns there. So even a certain
    spacing is tried beside voxels as they are, where agreement can be had.
    """
    found = estimate_spacing(stack)
    sure = found is not None and found.sure
    factor, known = 1.0, "no certain column spacing is seen"
    if sure and found is not None:
        factor = trained / found.spacing
        known = f"{found.describe()}; the network knows {trained:.1f}"
        if 1 / SAME_SPACING <= factor <= SAME_SPACING:
            return 1.0, f"{known}: near enough, voxels as they are"
    elif found is not None:
        known += f" (best guess: {found.describe()})"
    chosen, why = factor, ""
    tried = (1.0, factor) if sure else SCALES
    if agreement is not None:
        shapes = {s: scaled_shape(stack.shape, _factors(stack, s, by_planes=False)) for s in tried}
        values = {s: agreement(shape) for s, shape in shapes.items()}
        if not np.isnan(list(values.values())).all():
            worth = {s: np.nan_to_num(values[s], nan=-1.0) - ENLARGED * (s > 1) for s in tried}
            chosen = max(tried, key=lambda s: (worth[s], s == 1))
            others = ", ".join(f"{values[s]:.2f} at {s:.2f}" for s in tried if s != chosen)
            why = (
                ", where masks agree best with those of mirrored windows "
                f"(IoU {values[chosen]:.2f}; {others})"
            )
    what = "voxels as they are" if chosen == 1 else f"enlarged {chosen:.2f} times"
    advice = f"--scale {trained:.1f} divided by the distance of neighbouring columns in voxels"
    return chosen, f"{known}: {what}{why}" + f"; if you know it, give {advice}" * (not sure)
