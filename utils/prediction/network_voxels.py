"""The voxels that a network sees of a stack: cubes, as fine as the columns of its training ask."""

from __future__ import annotations

from utils.errors import UserError
from utils.stacks import Stack
from utils.stacks.column_spacing import estimate_spacing
from utils.stacks.resampling import cube_factors, scaled_shape

SAME_VOXEL = 0.02
"""Difference of voxel edges that is not worth resampling."""


def network_shape(
    stack: Stack, scale: float | str, trained_spacing: float, *, by_planes: bool
) -> tuple[tuple[int, ...], list[str]]:
    """Return the shape in which the network sees the stack, and lines that say why.

    Args:
        stack: read once if ``scale`` is ``auto``.
        scale: factor by which all axes are enlarged, or ``auto``: so that columns stand as far
            apart as in training.
        trained_spacing: their distance there, in voxels.
        by_planes: leave the last axis as it is, planes are predicted one by one.

    Raises:
        UserError: for an enlargement that cannot be meant, and where no columns are found.
    """
    reasons = []
    if scale == "auto":
        scale, found = _measure_scale(stack, trained_spacing)
        reasons.append(found)
    if by_planes:
        reasons.append("note: a 2D network on a stack: each plane along z is predicted by itself")
    if stack.spacing is None and len(stack.shape) == 3:
        unknown = "note: the voxel size is unknown, so voxels are taken for cubes; see --voxel_size"
        reasons.append(unknown)
    return scaled_shape(stack.shape, _factors(stack, float(scale), by_planes)), reasons


def check_enlargement(stack: Stack, scale: float | str, *, by_planes: bool) -> None:
    """Raise UserError for voxels that cannot be made cubes; reads nothing of the stack."""
    _factors(stack, 1.0 if scale == "auto" else float(scale), by_planes)


def _factors(stack: Stack, scale: float, by_planes: bool) -> tuple[float, ...]:
    """Return how much each axis is enlarged: to cubes of the finest edge, times ``scale``."""
    axes = len(stack.shape) - by_planes
    factors = cube_factors(stack.spacing and stack.spacing[:axes], scale)[:axes]
    factors = tuple(1.0 if abs(f - 1) <= SAME_VOXEL else f for f in factors)
    return (*factors, 1.0) if by_planes else factors


def _measure_scale(stack: Stack, trained: float) -> tuple[float, str]:
    """Return training's column spacing by the stack's, both in voxels, and a line on both."""
    found = estimate_spacing(stack)
    if found is None:
        raise UserError(f"--scale auto: no columns to be seen in {stack.path}; give a factor")
    if not found.sure:
        raise UserError(
            f"--scale auto: the spectrum of {stack.path} shows no certain column spacing (best "
            f"guess {found.describe()}); give a factor: {trained:.1f} divided by the distance of "
            "neighbouring columns in voxels"
        )
    factor = trained / found.spacing
    known = f"the network knows {trained:.1f}: enlarged {factor:.2f} times"
    return factor, f"scale: {found.describe()}; {known}"
