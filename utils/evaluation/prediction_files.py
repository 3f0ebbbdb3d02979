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
from utils.stacks import ENDINGS, open_stack

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


def choose_predictions(
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
        missing = [index for index in range(first) if index not in found]
        if missing:
            raise UserError(f"--volumes {first}: no prediction for volume {missing[0]}")
        found = {index: path for index, path in found.items() if index < first}
    checked = [check_prediction(path, shape) for path in found.values()]
    return PredictionFiles(found, tuple(warning for warning in checked if warning))


def find_predictions(paths: Sequence[str | Path], volumes: int) -> dict[int, Path]:
    """Return the file of each volume by its index, rising.

    Args:
        paths: stacks in any format of ``microscope_files``, and folders that hold such files. Where
            ``NAME`` and ``NAME_probabilities`` stand side by side, the probabilities are taken.
        volumes: how many volumes there are; of a single one the file needs no number.

    Raises:
        UserError: a path is missing or empty, a name has no number, a number names no volume
            or two files have the same.
    """
    files = [file for path in paths for file in _stacks(Path(path))]
    names = {str(_stem(file)) for file in files}
    files = [file for file in files if f"{_stem(file)}{PROBABILITIES}" not in names]
    found: dict[int, Path] = {}
    for file in files:
        index = _index(file, alone=len(files) == volumes == 1)
        if index >= volumes:
            raise UserError(
                f"{file}: its name ends in {index}, but the volumes are 0..{volumes - 1}"
            )
        if index in found:
            raise UserError(f"{found[index]} and {file} are both named for volume {index}")
        found[index] = file
    return dict(sorted(found.items()))


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
        if stack.shape != tuple(shape):
            raise UserError(f"{path}: has shape {stack.shape} (x, y, z), the volume {shape}")
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


def check_prediction(path: Path, shape: tuple[int, ...]) -> str | None:
    """Return a line on what of a file may be lost, if anything.

    Raises UserError or UserError if it cannot be opened or has another shape.
    """
    with open_stack(path) as stack:
        if stack.shape != tuple(shape):
            raise UserError(f"{path}: has shape {stack.shape} (x, y, z), the volume {shape}")
        return stack.warning()


def holds_predictions(path: Path) -> bool:
    """Return whether ``path`` is a stack or a folder with at least one in it."""
    try:
        return bool(_stacks(path))
    except UserError:
        return False


def _stacks(path: Path) -> list[Path]:
    """Return ``path`` if it is a stack, else the stacks in that folder."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if _ending(path):
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: unknown ending; the known ones are {', '.join(ENDINGS)}")
    found = sorted(p for p in path.iterdir() if _ending(p) and not p.name.startswith("."))
    if not found:
        raise UserError(f"{path}: holds no file that ends in {', '.join(ENDINGS)}")
    return found


def _ending(path: Path) -> str:
    """Return the longest known ending of a name; empty if it has none."""
    endings = [ending for ending in ENDINGS if path.name.lower().endswith(ending)]
    return max(endings, key=len, default="")


def _stem(path: Path) -> Path:
    """Return the path without its ending."""
    name = path.name[: -len(_ending(path))]
    return path.with_name(re.sub(r"\.ome$", "", name, flags=re.IGNORECASE) or name)


def _index(path: Path, alone: bool) -> int:
    numbers = re.findall(r"\d+", _stem(path).name)
    if alone:
        return 0
    if not numbers:
        raise UserError(
            f"{path}: its name has no number that says which volume it is of, such as "
            "volume_7_mask.tif for volume 7 (from 0)"
        )
    return int(numbers[-1])
