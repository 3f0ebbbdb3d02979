"""Random patches with enough foreground, in any dimension.

A corner is the first voxel of a patch, a patch the voxels from its corner on; masks are 0/1.
"""

from collections.abc import Callable

import numpy as np

from utils.errors import UserError

Slices = tuple[slice, ...]

_READ_TRIES = 4  # patches read from a file before its whole mask, which costs as much as three
_TRIES = 200  # misses before all corners are counted


def patch_slices(corner: np.ndarray, patch_shape: tuple[int, ...]) -> Slices:
    """Return the slices of the patch at ``corner``."""
    return tuple(slice(int(a), int(a) + p) for a, p in zip(corner, patch_shape, strict=True))


def box_counts(mask: np.ndarray, patch_shape: tuple[int, ...]) -> np.ndarray:
    """Return the labelled voxels of the patch at each corner, int32.

    Shape: ``mask.shape - patch_shape + 1``. Sums along one axis after the other, each the
    difference of a running sum with itself shifted by the patch's edge.
    """
    counts = mask
    for axis, edge in enumerate(patch_shape):
        running = np.cumsum(np.insert(counts, 0, 0, axis), axis, dtype=np.int32)
        length = running.shape[axis]
        counts = running.take(range(edge, length), axis) - running.take(range(length - edge), axis)
    return counts


def check_patches(
    shape: tuple[int, ...], patch_size: int, background_threshold: float, **counts: int | None
) -> None:
    """Raise UserError for patches that do not fit, a share outside 0..1, or a count below 1."""
    if not 1 <= patch_size <= min(shape):
        fits = f"does not fit into volumes of {shape}"
        raise UserError(f"a patch of {patch_size} voxels an edge {fits}")
    if not 0 <= background_threshold <= 1:
        raise UserError(f"background_threshold must be in 0..1, got {background_threshold}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{name} must be at least 1, got {count}")


def choose_patch(
    read_mask: Callable[[Slices], np.ndarray],
    shape: tuple[int, ...],
    patch_shape: tuple[int, ...],
    max_background: float,
    rng: np.random.Generator,
) -> tuple[Slices, np.ndarray]:
    """Return the slices of a random patch, and its mask, with at most ``max_background``.

    Uniform over all corners whose patch is labelled in a share of at least ``1 - max_background``:
    by rejection, and after many misses from the counts of all corners. Where none has enough, the
    densest (the first of equals). ``read_mask`` returns the mask within slices: a file's reader or
    an array's ``__getitem__``; it is called for the first few patches and then once for the whole
    mask.
    """
    # Rounded so that 0.95 of 20 voxels leaves 1, not 2.
    enough = int(np.ceil(round((1 - max_background) * np.prod(patch_shape), 6)))
    corners = np.subtract(shape, patch_shape) + 1
    for tries in (_READ_TRIES, _TRIES - _READ_TRIES):
        for _ in range(tries):
            slices = patch_slices(rng.integers(corners), patch_shape)
            mask = read_mask(slices)
            if np.count_nonzero(mask) >= enough:
                return slices, mask
        whole = read_mask(patch_slices(np.zeros(len(shape)), shape))
        read_mask = whole.__getitem__
    counts = box_counts(whole, patch_shape)
    valid = np.flatnonzero(counts >= enough)
    flat = rng.choice(valid) if valid.size else np.argmax(counts)
    slices = patch_slices(np.array(np.unravel_index(flat, counts.shape)), patch_shape)
    return slices, whole[slices]
