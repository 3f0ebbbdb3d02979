"""Labelled stacks to score against: what somebody has drawn, where simulated volumes know it all.

Labels tell which voxels are columns and, if each has its own number, which column they are of. No
sheet, no left-out columns and no (p, q) are known.
"""

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.data.labelled import UNKNOWN, OpenPair, annotation_line, find_pairs, reading_pair


@dataclass(frozen=True)
class LabelledVolume:
    """What is known of a labelled stack, as :class:`SimulatedVolume` is of a simulated one."""

    image: np.ndarray  # (X, Y, Z) or (X, Y) grey values
    # int32 of that shape, k + 1 inside column k, in the order of the labels; of a mask all 1
    instances: np.ndarray
    known: np.ndarray  # bool of that shape, where somebody has annotated
    edges: tuple[float, ...]  # of a voxel along x, y, z, as Stack.edges

    @property
    def mask(self) -> np.ndarray:
        """0 and 1, 0 where nobody annotated."""
        return (self.instances > 0).astype(np.uint8)

    @property
    def told_apart(self) -> bool:
        """Whether columns have numbers of their own."""
        return bool(self.instances.max() > 1)


class LabelledSet:
    """Labelled stacks, as :class:`VolumeFile` are simulated volumes.

    All files are opened and their labels counted at once; UserError as
    :func:`utils.data.labelled.find_pairs`, ``reading_pair`` and ``OpenPair.count`` raise it. Of
    nnU-Net's layout the test set is taken where it has labels.
    """

    def __init__(self, given: str, *, channel: int | None = None, **reading: Any) -> None:
        self.path = given
        self.pairs = find_pairs(given, channel=channel, parts=("Ts", "Tr"))
        self.names = [pair.name for pair in self.pairs]
        self._reading = reading  # of reading_pair
        self.shapes: list[tuple[int, ...]] = []  # voxels along x, y, z (or x, y) of each
        self.lines: list[str] = []  # how much of each stack is annotated
        self.about: list[dict[str, Any]] = []  # the same as plain JSON
        for index, pair in enumerate(self.pairs):
            with self.opened(index) as opened:
                annotated, labelled, ids = opened.count()
                shape = opened.image.shape
            columns = ids if ids > 1 else None
            told = f"{columns} columns" if columns else "a mask, which does not tell columns apart"
            self.shapes.append(shape)
            self.lines.append(annotation_line(pair, shape, annotated, labelled, told))
            counts = {"annotated": annotated, "labelled": labelled, "columns": columns}
            self.about.append({"name": pair.name, "shape": list(shape), **counts})

    def __len__(self) -> int:
        """Return the number of stacks."""
        return len(self.pairs)

    @property
    def notes(self) -> list[str]:
        """What a reader of the scores should know."""
        notes = [
            "labels do not tell of the sheet, left-out columns, column types and (p, q): scores of "
            "these are left out"
        ]
        ignored = self._reading.get("ignore_label")
        if any(one["annotated"] < math.prod(one["shape"]) for one in self.about):
            notes.append(
                "parts of the stacks are not annotated: columns are compared by the voxels in the "
                "others, not by centre lines and axes"
            )
        elif ignored is not None:
            notes.append(f"--ignore_label {ignored} marks no voxel")
        return notes

    def opened(self, index: int) -> AbstractContextManager[OpenPair]:
        """Open a stack and its labels for a block."""
        return reading_pair(self.pairs[index], **self._reading)

    def read_volume(self, index: int) -> LabelledVolume:
        """Return a stack and its labels."""
        with self.opened(index) as opened:
            image, ids = opened.image.read(), opened.read_labels(0, opened.image.shape[-1])
            edges = opened.image.edges
        known = ids != UNKNOWN
        values, numbers = np.unique(np.maximum(ids, 0), return_inverse=True)
        numbers = numbers.reshape(ids.shape).astype(np.int32) + (values[0] > 0)
        return LabelledVolume(image, numbers, known, edges)
