"""Stacks larger than memory, worked off in slabs and in blocks that overlap.

Large arrays then lie in files without a name, which the system keeps in memory as far as there is
some. A column belongs to the block whose core its centre lies in, which sees it whole.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.columns.instances import Moments
from utils.errors import UserError, disk_errors
from utils.stacks import Stack

PLANES, VOXELS = 16, 2**24
"""Of a slab: planes at least, and voxels that it may have then. One slab of a small stack is sooner
worked off than many, whose rows lie apart in memory."""
MARGIN = 64
"""Voxels about a block's core that are seen at first; twice as many where a column is longer."""

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Room:
    """Where large arrays lie, and how much of them is worked on at once."""

    folder: Path | None = None
    """For files that vanish with their arrays; None: arrays are in memory."""
    voxels: int | None = None
    """Most in a block, its margin included; None: the whole stack is one block."""

    def array(self, shape: tuple[int, ...], dtype: np.dtype | type) -> np.ndarray:
        """Return zeros; UserError where the disk has no room for them."""
        if self.folder is None:
            return np.zeros(shape, dtype, order="F")
        needed = math.prod(shape) * np.dtype(dtype).itemsize
        with disk_errors(self.folder, "written"):
            free = shutil.disk_usage(self.folder).free
            if needed > free:
                raise UserError(
                    f"{self.folder}: to find columns in a stack larger than memory takes "
                    f"{needed / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free"
                )
            with tempfile.TemporaryFile(dir=self.folder) as file:
                return np.memmap(file, dtype, "w+", shape=shape, order="F")

    def load(self, stack: Stack) -> np.ndarray:
        """Return the voxels (X, Y, Z) of a stack."""
        if self.folder is None:
            return stack.read()
        array = self.array(stack.shape, stack.dtype)
        for start, slab in slabs(array):
            slab[:] = stack.read(start, start + slab.shape[-1])
        return array

    def cores(self, shape: tuple[int, ...]) -> Iterator[Box]:
        """Yield boxes that fill a stack of ``shape``, so that twice their margin is in the room."""
        edge = max(shape)
        if self.voxels is not None:
            edge = max(MARGIN, round(self.voxels ** (1 / 3)) - 4 * MARGIN)
        # Equal parts, so that none is a sliver.
        parts = [np.linspace(0, n, -(-n // edge) + 1).astype(int) for n in shape]
        spans = [[slice(*pair) for pair in itertools.pairwise(part.tolist())] for part in parts]
        yield from itertools.product(*spans)


def slabs(volume: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first plane of each slab, and the slab (X, Y, planes)."""
    planes = max(PLANES, VOXELS // max(1, math.prod(volume.shape[:-1])))
    for start in range(0, volume.shape[-1], planes):
        yield start, volume[..., start : start + planes]


def find_in_blocks(
    find: Callable[[Box], np.ndarray], shape: tuple[int, ...], room: Room
) -> tuple[np.ndarray, int]:
    """Return labels (X, Y, Z) int32 of the instances 1..N, and how many of them may be cut.

    Args:
        find: returns labels of a box, 0 for background.
        shape: of the stack.
        room: how large a box may be.
    """
    cores, count, cut = list(room.cores(shape)), 0, 0
    if len(cores) == 1:
        return find(cores[0]), 0
    labels = room.array(shape, np.int32)
    for core in cores:
        margin, box = MARGIN, _grown(core, MARGIN, shape)
        found = find(box)
        own, leaving = _in_core(found, box, core, shape)
        while (own & leaving).any():
            margin *= 2
            wider = _grown(core, margin, shape)
            if room.voxels is not None and math.prod(s.stop - s.start for s in wider) > room.voxels:
                cut += int(np.count_nonzero(own & leaving))
                break
            box, found = wider, find(wider)
            own, leaving = _in_core(found, box, core, shape)
        here = labels[box]
        free = here == 0
        sizes, left = (
            np.bincount(f.ravel(), minlength=len(own) + 1)[1:] for f in (found, found[free])
        )
        own &= 2 * left > sizes  # else another block has found it, as one with its neighbour
        numbers = np.append(0, np.where(own, count + np.cumsum(own), 0)).astype(labels.dtype)
        labels[box] = np.where(free, numbers[found], here)
        count += int(own.sum())
    return labels, cut


def _grown(core: Box, margin: int, shape: tuple[int, ...]) -> Box:
    """Return ``core`` with a margin on all sides, within the stack."""
    return tuple(
        slice(max(c.start - margin, 0), min(c.stop + margin, n))
        for c, n in zip(core, shape, strict=True)
    )


def _in_core(
    found: np.ndarray, box: Box, core: Box, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which instances (N,) of a box are centred in its core, and which leave the box.

    What leaves the stack itself does not count.
    """
    centre = Moments.of(found, (1.0,) * 3).centre
    own = np.ones(len(centre), bool)
    for axis, (outer, inner) in enumerate(zip(box, core, strict=True)):
        place = centre[:, axis] + outer.start
        own &= (place >= inner.start - 0.5) & (place < inner.stop - 0.5)
    ends = [
        found.take(k, axis)
        for axis, (outer, n) in enumerate(zip(box, shape, strict=True))
        for k, open_ended in ((0, outer.start > 0), (-1, outer.stop < n))
        if open_ended
    ]
    touched = np.unique(np.concatenate([np.zeros(1, int), *(end.ravel() for end in ends)]))
    return own, np.isin(np.arange(len(centre)) + 1, touched)
