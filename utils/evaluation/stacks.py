"""Stacks in files that are scored: labelled ones, where labels are the truth, and predictions.

Labels tell which voxels are columns and, if each has its own number, which column they are of. No
sheet, no left-out columns and no (p, q) are known.

Predictions are masks and probability maps. The last whole number in a file's name is the index of
its volume, from 0 (``volume_007_mask.tif`` is that of volume 7), as in ``predict.py --index``. Of
labelled stacks, which have names, it begins with the stack's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.data.labelled import UNKNOWN, OpenPair, annotation_line, find_pairs, reading_pair
from utils.errors import UserError
from utils.stacks import ENDINGS, open_stack, split_ending

PROBABILITIES = "_probabilities"
"""How predict.py ends the name of a map that it writes beside a mask."""


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


@dataclass(frozen=True)
class PredictionFiles:
    """Masks or probability maps that were written before, one a volume."""

    paths: Mapping[int, Path]
    trained_on: None = None
    said: tuple[str, ...] = ()

    def predict(self, index: int, volume: Any) -> tuple[np.ndarray, tuple[float, ...] | None]:
        """Return probabilities (X, Y, Z) float32 0..1 and the file's voxel size (x, y, z), if any.

        Whole numbers are masks: all above 0 is foreground (0/1, 0/255, instance ids). Fractions are
        probabilities. Raises UserError for values that are neither, or a file that cannot be read.
        """
        path = self.paths[index]
        with open_stack(path) as stack:
            values = stack.read()
        if values.dtype.kind in "ui":
            return (values > 0).astype(np.float32), stack.spacing
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise UserError(
                f"{path}: fractions from {low:g} to {high:g} are no probabilities, which lie in "
                "0..1; a mask must hold whole numbers of 8 or 16 bits"
            )
        return values.astype(np.float32), stack.spacing

    def describe(self) -> dict[str, Any]:
        """Return what predicted, as plain JSON."""
        return {"predictions": {str(index): str(path) for index, path in self.paths.items()}}


def find_predictions(
    paths: Sequence[str | Path], shapes: Sequence[tuple[int, ...]], names: Sequence[str] = ()
) -> PredictionFiles:
    """Return the file of each volume, by rising index; ``shapes`` and ``names`` are the volumes'.

    Paths are stacks in any format of ``utils.stacks``, and folders that hold such files. Where
    ``NAME`` and ``NAME_probabilities`` stand side by side, the probabilities are taken. Raises
    UserError where a path holds no stack, a name says of no volume or two of the same, or a file
    cannot be opened or has another shape.
    """
    files = []
    for path in map(Path, paths):
        stacks = stacks_at(path)
        if not stacks:
            known = ", ".join(ENDINGS)
            raise UserError(f"{path}: neither a stack nor a folder with one; they end in {known}")
        files += stacks
    given = {(file.parent, split_ending(file)[0]) for file in files}
    files = [f for f in files if (f.parent, split_ending(f)[0] + PROBABILITIES) not in given]
    found: dict[int, Path] = {}
    for file in files:
        index = _named(file, names) if names else _numbered(file, len(shapes))
        if index in found:
            raise UserError(f"{found[index]} and {file} are both named for volume {index}")
        found[index] = file
        with open_stack(file) as stack:
            if stack.shape != shapes[index]:
                raise UserError(
                    f"{file}: has shape {stack.shape} (x, y, z), the volume {shapes[index]}"
                )
    return PredictionFiles(dict(sorted(found.items())))


def _numbered(file: Path, volumes: int) -> int:
    """Return the last number in a file's name; UserError unless it is that of a volume."""
    numbers = re.findall(r"\d+", split_ending(file)[0])
    if not numbers or int(numbers[-1]) >= volumes:
        raise UserError(
            f"{file}: the last number in its name must say which volume it is of, from 0 to "
            f"{volumes - 1}, such as volume_0_mask.tif"
        )
    return int(numbers[-1])


def _named(file: Path, names: Sequence[str]) -> int:
    """Return which of ``names`` a file's name begins with; UserError if it does with none."""
    fitting = [name for name in names if f"{split_ending(file)[0]}_".startswith(f"{name}_")]
    if not fitting:
        raise UserError(
            f"{file}: its name must begin with that of its stack, as {names[0]}_mask.tif does"
        )
    return names.index(max(fitting, key=len))


def stacks_at(path: Path) -> list[Path]:
    """Return ``path`` if it ends as stacks do, else the stacks in that folder, if there are any."""
    endings = tuple(ENDINGS)
    if path.name.lower().endswith(endings):
        return [path]
    inside = sorted(path.iterdir()) if path.is_dir() else []
    return [p for p in inside if p.name.lower().endswith(endings) and not p.name.startswith(".")]
