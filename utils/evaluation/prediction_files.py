"""Masks and probability maps in files, one a volume: which belongs to which, and what they hold.

The last whole number in a file's name is the index of its volume, from 0 (``volume_007_mask.tif``
is that of volume 7), as in ``predict.py --index``. Of labelled stacks, which have names, it begins
with the stack's.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.simulation import SimulatedVolume
from utils.stacks import ENDINGS, open_stack, split_ending

PROBABILITIES = "_probabilities"
"""How predict.py ends the name of a map that it writes beside a mask."""


@dataclass(frozen=True)
class PredictionFiles:
    """Masks or probability maps that were written before, one a volume."""

    paths: Mapping[int, Path]
    trained_on: None = None
    said: tuple[str, ...] = ()

    def predict(
        self, index: int, volume: SimulatedVolume
    ) -> tuple[np.ndarray, tuple[float, ...] | None]:
        """Return probabilities (X, Y, Z) and the file's voxel size (x, y, z), if it has one."""
        return read_prediction(self.paths[index])

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


def read_prediction(path: Path) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Return a prediction as probabilities (X, Y, Z) float32 0..1, and its voxel size if known.

    Whole numbers are masks: all above 0 is foreground (0/1, 0/255, instance ids). Fractions are
    probabilities. Raises UserError for values that are neither, or a file that cannot be read.
    """
    with open_stack(path) as stack:
        values = stack.read()
        spacing = stack.spacing
    if values.dtype.kind in "ui":
        return (values > 0).astype(np.float32), spacing
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"{path}: fractions from {low:g} to {high:g} are no probabilities, which lie in 0..1; "
            "a mask must hold whole numbers of 8 or 16 bits"
        )
    return values.astype(np.float32), spacing
