"""Random patches with enough foreground, in any dimension.

A corner is the first voxel of a patch, a patch the voxels from its corner on; masks are 0/1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from utils.errors import UserError

Slices = tuple[slice, ...]

_READ_TRIES = 4
"""Patches read from the file before its whole mask: that costs as much as three of them."""


def patch_slices(corner: np.ndarray, patch_shape: tuple[int, ...]) -> Slices:
    """Return the slices of the patch at ``corner``."""
    return tuple(slice(int(a), int(a) + p) for a, p in zip(corner, patch_shape, strict=True))


def box_counts(mask: np.ndarray, patch_shape: tuple[int, ...]) -> np.ndarray:
    """Return the labelled voxels of the patch at each corner, int32.

    Shape: ``mask.shape - patch_shape + 1``. Sums along one axis after the other, each the
    difference of a running sum with itself shifted by the patch's edge.
    """
    counts = mask.astype(np.int32)
    for axis, edge in enumerate(patch_shape):
        running = np.cumsum(counts, axis=axis, dtype=np.int32)
        counts = np.take(running, np.arange(edge - 1, mask.shape[axis]), axis=axis)
        later = (slice(None),) * axis + (slice(1, None),)
        counts[later] -= np.take(running, np.arange(mask.shape[axis] - edge), axis=axis)
    return counts


def choose_patch(
    read_mask: Callable[[Slices], np.ndarray],
    shape: tuple[int, ...],
    patch_shape: tuple[int, ...],
    max_background: float,
    rng: np.random.Generator,
    *,
    tries: int = 200,
) -> tuple[Slices, np.ndarray]:
    """Return the slices of a random patch, and its mask, with at most ``max_background``.

    Uniform over all corners whose patch is labelled in a share of at least ``1 - max_background``:
    by rejection, and after ``tries`` misses from the counts of all corners. Where none has enough,
    the densest (the first of equals). ``read_mask`` returns the mask within slices: a file's reader
    or an array's ``__getitem__``; it is called for the first few patches and then once for the
    whole mask. Raises ValueError if the patch is larger than the volume.
    """
    if len(patch_shape) != len(shape) or any(
        not 0 < p <= s for p, s in zip(patch_shape, shape, strict=True)
    ):
        raise UserError(f"a patch of {patch_shape} voxels does not fit into {shape}")
    enough = _least_count(patch_shape, max_background)
    corners = np.subtract(shape, patch_shape) + 1
    whole: np.ndarray | None = None
    for attempt in range(tries):
        slices = patch_slices(rng.integers(corners), patch_shape)
        if attempt == _READ_TRIES:
            whole = read_mask(patch_slices(np.zeros(len(shape)), shape))
        mask = read_mask(slices) if whole is None else whole[slices]
        if np.count_nonzero(mask) >= enough:
            return slices, mask
    if whole is None:
        whole = read_mask(patch_slices(np.zeros(len(shape)), shape))
    slices = patch_slices(_corner_by_counts(whole, patch_shape, enough, rng), patch_shape)
    return slices, whole[slices]


def _least_count(patch_shape: tuple[int, ...], max_background: float) -> int:
    """Return the least labelled voxels; rounded so that 0.95 of 20 voxels leaves 1, not 2."""
    return int(np.ceil(round((1 - max_background) * np.prod(patch_shape), 6)))


def _corner_by_counts(
    mask: np.ndarray, patch_shape: tuple[int, ...], enough: int, rng: np.random.Generator
) -> np.ndarray:
    counts = box_counts(mask, patch_shape)
    valid = np.flatnonzero(counts >= enough)
    flat = rng.choice(valid) if valid.size else np.argmax(counts)
    return np.array(np.unravel_index(flat, counts.shape))
