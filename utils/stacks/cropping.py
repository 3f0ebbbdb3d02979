"""A box cut out of a stack, as a stack of its own that keeps voxel size and place in space."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from utils.errors import UserError
from utils.stacks import Stack


def crop_stack(stack: Stack, ranges: Sequence[tuple[int | None, int | None]]) -> Stack:
    """Return the box ``ranges`` of ``stack``, cut where it is read; closing either closes the file.

    ``ranges`` are the first voxel and the one after the last along z, y, x (or y, x), from 0; None
    is the stack's own end. Raises UserError for a box that does not lie within the stack.
    """
    if len(ranges) != len(stack.shape):
        names = ",".join(f"{a}0:{a}1" for a in "zyx"[-len(stack.shape) :])
        given = f"has {len(stack.shape)} axes, but --crop {len(ranges)} ranges"
        raise UserError(f"{stack.path}: {given}; give {names}")
    starts, stops = [], []
    for axis, (first, last), length in zip("xyz", reversed(ranges), stack.shape, strict=False):
        start, stop = first or 0, length if last is None else last
        if not 0 <= start < stop <= length:
            said = f"--crop {start}:{stop} along {axis}: must lie within 0:{length}"
            raise UserError(f"{stack.path}: {said}")
        starts.append(start)
        stops.append(stop)

    def part(box: tuple[slice, ...]) -> np.ndarray:
        moved = zip(box, starts, strict=True)
        return stack.part(tuple(slice(s.start + first, s.stop + first) for s, first in moved))

    return dataclasses.replace(
        stack,
        shape=tuple(b - a for a, b in zip(starts, stops, strict=True)),
        origin=tuple(a + b for a, b in zip(stack.origin, starts, strict=True)),
        place=stack.place.moved(starts),
        part=part,
    )
