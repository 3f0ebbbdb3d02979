"""Masks and probability maps in files, one a volume: which belongs to which, and what they hold.

The last whole number in a file's name is the index of its volume, from 0 (``volume_007_mask.tif``
is that of volume 7), as in ``predict.py --index``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.simulation import SimulatedVolume
from utils.stacks import ENDINGS, Stack, open_stack, split_ending

PROBABILITIES = "_probabilities"
"""How predict.py ends the name of a map that it writes beside a mask."""


@dataclass(frozen=True)
class PredictionFiles:
    """Masks or probability maps that were written before, one a volume."""

    paths: Mapping[int, Path]
    warnings: tuple[str, ...] = ()
    """Why some of them may not be whole."""
    trained_on: None = None

    def predict(
        self, index: int, volume: SimulatedVolume
    ) -> tuple[np.ndarray, tuple[float, ...] | None]:
        """Return probabilities (X, Y, Z) and the file's voxel size (x, y, z), if it has one."""
        return read_prediction(self.paths[index], volume.image.shape)

    def describe(self) -> dict[str, Any]:
        """Return what predicted, as plain JSON."""
        return {"predictions": {str(index): str(path) for index, path in self.paths.items()}}


def open_predictions(
    paths: Sequence[str | Path], shape: tuple[int, ...], volumes: int, first: int | None
) -> PredictionFiles:
    """Return a file for each volume, or for each of the ``first`` ones, all opened once.

    ``paths`` and ``volumes`` as in :func:`find_predictions`; ``shape`` is that of every volume.

    Raises:
        UserError: files that do not belong to the volumes, or lack one that is asked for.
        UserError: a file that cannot be opened.
    """
    found = find_predictions(paths, volumes)
    if first is not None:
        missing = sorted(set(range(first)) - set(found))
        if missing:
            raise UserError(f"--volumes {first}: no prediction for volume {missing[0]}")
        found = {index: found[index] for index in range(first)}
    warnings = []
    for path in found.values():
        with open_stack(path) as stack:
            _check_shape(stack, shape)
            warnings.append(stack.warning())
    return PredictionFiles(found, tuple(warning for warning in warnings if warning))


def find_predictions(paths: Sequence[str | Path], volumes: int) -> dict[int, Path]:
    """Return the file of each volume by its index, rising.

    Args:
        paths: stacks in any format of ``utils.stacks``, and folders that hold such files. Where
            ``NAME`` and ``NAME_probabilities`` stand side by side, the probabilities are taken.
        volumes: how many volumes there are; of a single one the file needs no number.

    Raises:
        UserError: a path is missing or empty, a name has no number, a number names no volume
            or two files have the same.
    """
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        stacks = stacks_at(path)
        if not stacks:
            known = ", ".join(ENDINGS)
            raise UserError(f"{path}: neither a stack nor a folder with one; they end in {known}")
        files += stacks
    names = {(file.parent, split_ending(file)[0]) for file in files}
    files = [f for f in files if (f.parent, split_ending(f)[0] + PROBABILITIES) not in names]
    found: dict[int, Path] = {}
    for file in files:
        index = 0 if len(files) == volumes == 1 else _index_in_name(file)
        if index >= volumes:
            raise UserError(
                f"{file}: its name ends in {index}, but the volumes are 0..{volumes - 1}"
            )
        if index in found:
            raise UserError(f"{found[index]} and {file} are both named for volume {index}")
        found[index] = file
    return dict(sorted(found.items()))


def stacks_at(path: Path) -> list[Path]:
    """Return ``path`` if it ends as stacks do, else the stacks in that folder, if there are any."""
    endings = tuple(ENDINGS)
    if path.name.lower().endswith(endings):
        return [path]
    inside = sorted(path.iterdir()) if path.is_dir() else []
    return [p for p in inside if p.name.lower().endswith(endings) and not p.name.startswith(".")]


def read_prediction(
    path: Path, shape: tuple[int, ...]
) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Return a prediction as probabilities (X, Y, Z) float32 0..1, and its voxel size if known.

    Whole numbers are masks: all above 0 is foreground (0/1, 0/255, instance ids). Fractions are
    probabilities.

    Raises:
        UserError: another shape, or values that are neither.
        UserError: the file cannot be read.
    """
    with open_stack(path) as stack:
        _check_shape(stack, shape)
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


def _check_shape(stack: Stack, shape: tuple[int, ...]) -> None:
    if stack.shape != tuple(shape):
        raise UserError(f"{stack.path}: has shape {stack.shape} (x, y, z), the volume {shape}")


def _index_in_name(path: Path) -> int:
    numbers = re.findall(r"\d+", split_ending(path)[0])
    if not numbers:
        raise UserError(
            f"{path}: its name has no number that says which volume it is of, such as "
            "volume_7_mask.tif for volume 7 (from 0)"
        )
    return int(numbers[-1])
