"""Planes of a stack and its mask at right angles, gathered slab by slab for a picture.

Arrays are (X, Y, Z) or (X, Y); slabs are ranges of the last axis, in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

MOST_PIXELS = 1024  # of a plane along an axis: of longer ones each second, third, ... is taken


@dataclass(frozen=True)
class Sections:
    """Three planes of a stack, across z, y and x, and of its mask; of an image the one there is."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...] | None  # edge of a voxel in micrometres
    origin: tuple[int, ...]  # of the first voxel in the file
    middle: tuple[int, ...]  # the voxel that all planes go through
    marked: int  # voxels of the whole mask
    images: list[np.ndarray]  # grey values, 0 to 1, (X, Y), (X, Z) and (Y, Z)
    masks: list[np.ndarray]  # 0 and 1, of the same shapes


def middle_of(masks: Iterable[np.ndarray], shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return the median of the mask's voxels along each axis, and how many there are.

    So each plane through it meets the mask. The middle of the stack if the mask is empty.
    """
    counts = [np.zeros(length, np.int64) for length in shape]
    start = 0
    for mask in masks:
        stop = start + mask.shape[-1]
        for axis, count in enumerate(counts):
            others = tuple(k for k in range(len(shape)) if k != axis)
            part = slice(start, stop) if axis == len(shape) - 1 else slice(None)
            count[part] += np.count_nonzero(mask, axis=others)
        start = stop
    marked = int(counts[0].sum())
    if not marked:
        return tuple(length // 2 for length in shape), 0
    return tuple(int(np.searchsorted(c.cumsum(), marked / 2)) for c in counts), marked


def cut(
    slabs: Iterable[np.ndarray], shape: tuple[int, ...], middle: tuple[int, ...]
) -> list[np.ndarray]:
    """Return the planes through ``middle``, in the order of :class:`Sections`."""
    steps = [slice(None, None, -(-length // MOST_PIXELS)) for length in shape]
    whole: list[np.ndarray] = []
    parts: list[list[np.ndarray]] = []
    start = 0
    for slab in slabs:
        step = steps[-1].step
        taken = slab[..., -start % step :: step]
        if len(shape) == 2:
            parts.append([taken[steps[0]].copy()])
        else:
            x, y, z = middle
            if start <= z < start + slab.shape[-1]:
                whole = [slab[steps[0], steps[1], z - start].copy()]
            parts.append([taken[steps[0], y].copy(), taken[x, steps[1]].copy()])
        start += slab.shape[-1]
    return [*whole, *(np.concatenate(pieces, axis=-1) for pieces in zip(*parts, strict=True))]
