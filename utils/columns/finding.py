"""From a stack of probabilities, a mask or labels to columns and the files that hold them.

The whole stack is in memory, about 30 bytes a voxel at the peak, so that no column is cut.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from skimage.filters import threshold_otsu

from utils.columns.instances import depth, find_instances, spreading
from utils.columns.landmarks import orient
from utils.columns.lattice import Lattice, fit_lattice
from utils.columns.table import Measured, measure_columns, table_of
from utils.errors import UserError
from utils.prediction.memory import Memory
from utils.provenance import describe_program
from utils.replacing import replacing
from utils.stacks import Stack, StackLayout, split_ending, write_stack

HALF = 0.5
"""Probability from which a voxel belongs to a column; also the share of touching voxels of equal
value from which whole numbers are labels and no grey values."""
VOXEL_BYTES = 30
"""Taken at the peak, measured on a map of which a tenth is foreground."""


@dataclass(frozen=True)
class Landmarks:
    """What a person knows of the lattice; None is free."""

    origin: int | None = None
    """column_id of the column at (0, 0)."""
    dorsal: tuple[float, float, float] | None = None
    """Direction x, y, z in the file's space."""
    hemisphere: str | None = None
    """``L`` or ``R``."""


@dataclass(frozen=True)
class FoundColumns:
    """The columns of a stack."""

    labels: np.ndarray
    """(X, Y, Z) int32: column_id, 0 for background."""
    measured: Measured
    lattice: Lattice
    steps: tuple[float, ...]
    """Edge of a voxel along x, y, z: micrometres, or 1 where nobody knows."""
    landmarks: Landmarks
    notes: list[str] = field(default_factory=list)
    """Lines for the user."""
    unit: str = "voxels"
    """Of lengths: the sign of micrometres, or voxels."""


def columns_of(
    volume: np.ndarray,
    steps: tuple[float, ...],
    *,
    threshold: float | None = None,
    channels: Mapping[int, np.ndarray] | None = None,
    landmarks: Landmarks | None = None,
) -> FoundColumns:
    """Return the columns of a probability map, a mask, labels or grey values.

    Args:
        volume: (X, Y, Z) of any real dtype; voxels that are not finite are background.
        steps: edge of a voxel along x, y, z.
        threshold: value from which a voxel belongs to a column; None: 0.5 of probabilities, Otsu's
            for grey values.
        channels: (X, Y, Z) grey values to measure, by the channel's number.
        landmarks: for the lattice.

    Raises:
        UserError: for an image in 2D, or an origin that is no column with a place.
    """
    if volume.ndim != 3:
        raise UserError(f"an image of {volume.ndim} axes: columns are found in stacks of three")
    landmarks = landmarks or Landmarks()
    labels, score, note = _instances(volume, steps, threshold)
    measured = measure_columns(labels, steps, score, channels)
    lattice = fit_lattice(measured.centre, measured.axis, paths=measured.paths)
    row = None if landmarks.origin is None else landmarks.origin - 1
    dorsal = None if landmarks.dorsal is None else np.array(landmarks.dorsal)
    lattice = orient(
        lattice, measured.axis, origin=row, dorsal=dorsal, hemisphere=landmarks.hemisphere
    )
    count, placed = len(measured.axis), int(np.count_nonzero(lattice.patch))
    notes = [note, f"columns: {count}" if count else "columns: none; nothing reaches the threshold"]
    if count and not placed:
        notes.append("lattice: none; too few columns stand as on one")
    elif count:
        notes.append(
            f"lattice: {placed} columns ({placed / count:.1%}) have a place, in "
            f"{len(lattice.votes)} patches; {len(lattice.inferred.patch)} more are inferred"
        )
        notes += [
            f"lattice: patch {k}: the diagonal had {vote.share:.0%} of {vote.votes} votes"
            for k, vote in enumerate(lattice.votes[:3], start=1)
        ]
        given = [name for name, value in dataclasses.asdict(landmarks).items() if value is None]
        if given:
            notes.append(f"lattice: free, for want of a landmark: {', '.join(given)}")
    return FoundColumns(labels, measured, lattice, steps, landmarks, notes)


def _instances(
    volume: np.ndarray, steps: tuple[float, ...], threshold: float | None
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Return labels, what scores them, and a line on how the volume was read."""
    seen = np.isfinite(volume)
    lost = volume.size - int(np.count_nonzero(seen))
    values = volume if lost == 0 else np.where(seen, volume, 0)
    missing = f"; {lost} voxels that are not finite are background" if lost else ""
    low, high = float(values.min()), float(values.max())
    whole = volume.dtype.kind in "bui" or not np.any(values % 1)
    if not whole and low >= 0 and high <= 1:
        least = HALF if threshold is None else threshold
        foreground = values >= least
        note = f"read as a probability map: columns from {least:g} on{missing}"
        return find_instances(values, foreground, steps), values, note
    inside = values[values != 0]
    several = bool(len(inside)) and bool(inside.min() != inside.max())
    if threshold is None and whole and low >= 0 and several:
        pair = (values[1:] != 0) & (values[:-1] != 0)
        equal = np.count_nonzero(pair & (values[1:] == values[:-1]))
        if equal >= HALF * np.count_nonzero(pair):
            labels = np.unique(values, return_inverse=True)[1].reshape(values.shape)
            first = 0 if low == 0 else 1  # no background at all
            return (
                (labels + first).astype(np.int32),
                None,
                f"read as labels, kept as they are{missing}",
            )
    if threshold is not None:
        foreground, how = values >= threshold, f"a mask of values from {threshold:g} on"
    elif several:
        least = float(threshold_otsu(values))
        foreground, how = values > least, f"grey values, columns above {least:g} (Otsu's threshold)"
    else:
        foreground, how = values != 0, "a mask of values that are not 0"
    note = f"read as {how}{missing}"
    return find_instances(depth(foreground, steps), foreground, steps), None, note


def column_files(labels: Path, *, pictures: bool) -> dict[str, Path]:
    """Return the files of the columns by name, beside that of their labels."""
    stem = split_ending(labels)[0].removesuffix("_labels")
    names = {"table": "columns.csv", "paths": "paths.csv", "lattice": "lattice.json"}
    if pictures:
        names |= {"map": "lattice.png", "planes": "columns.png"}
    return {"labels": labels} | {
        key: labels.with_name(f"{stem}_{name}") for key, name in names.items()
    }


def write_columns(
    found: FoundColumns, stack: Stack, files: Mapping[str, Path], about: Mapping[str, Any]
) -> None:
    """Write labels, tables and the side file; UserError for a disk that cannot be written.

    Args:
        found: the columns of ``stack``.
        stack: gives the labels their voxel size and place in space.
        files: of :func:`column_files`.
        about: the program and its input, plain JSON.
    """
    # Fiji's TIFF has no whole numbers of 32 bits; float32 holds them exactly up to 2^24.
    dtype = np.uint16 if len(found.measured.axis) < 2**16 else np.float32
    layout = StackLayout.like(stack, dtype)
    depths = range(0, stack.shape[2], 16)
    slabs = (found.labels[..., z : z + 16].astype(dtype) for z in depths)
    write_stack(files["labels"], slabs, layout)
    hemisphere = found.landmarks.hemisphere
    shift = tuple(n * step for n, step in zip(stack.origin, found.steps, strict=True))
    tables = table_of(found.measured, found.lattice, found.steps, shift, hemisphere)
    for path, table in zip((files["table"], files["paths"]), tables, strict=True):
        with replacing(path) as temporary:
            table.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    with replacing(files["lattice"]) as temporary:
        side = _side(found, stack) | dict(about)
        temporary.write_text(json.dumps(side, indent=2, allow_nan=False) + "\n")


def find_in_stack(
    stack: Stack,
    files: Mapping[str, Path],
    *,
    threshold: float | None,
    channels: Mapping[int, np.ndarray] | None = None,
    landmarks: Landmarks | None = None,
    memory: float | None,
    script: str,
) -> FoundColumns:
    """Find the columns of a stack, write their files but the pictures, and return them.

    Args:
        stack: probabilities, mask, labels or grey values.
        files: of :func:`column_files`.
        threshold: of :func:`columns_of`.
        channels: of :func:`columns_of`.
        landmarks: of :func:`columns_of`.
        memory: most that may be taken, in GB; None: most of what is free.
        script: path of the script that asks.

    Raises:
        UserError: for a stack that is too large for the memory, and as :func:`columns_of`.
    """
    needed, advice = math.prod(stack.shape) * VOXEL_BYTES, ", or take a part with --crop"
    Memory.allowed(memory).check(needed, f"{stack.path}: to find its columns takes", advice)
    steps = stack.spacing or (1.0,) * len(stack.shape)
    found = columns_of(
        stack.read(), steps, threshold=threshold, channels=channels, landmarks=landmarks
    )
    if stack.spacing is not None:
        found = dataclasses.replace(found, unit="\u00b5m")
    about = {"input": str(stack.path), "program": describe_program(script)}
    write_columns(found, stack, files, about)
    return found


def _side(found: FoundColumns, stack: Stack) -> dict[str, Any]:
    """Return what the tables do not say, as plain JSON."""
    lattice, measured = found.lattice, found.measured
    return {
        "landmarks": {
            name: "free" if value is None else value
            for name, value in dataclasses.asdict(found.landmarks).items()
        },
        "unit": "voxel" if stack.spacing is None else "micrometre",
        "positions": "x, y, z from the centre of the file's first voxel",
        "axis": "towards the side where columns spread: distal in medulla and eye",
        "axis_spreading": spreading(measured.axis, measured.centre),
        "patches": [
            {
                "patch": number,
                "columns": int(np.count_nonzero(lattice.patch == number)),
                "inferred": int(np.count_nonzero(lattice.inferred.patch == number)),
                "diagonal": dataclasses.asdict(vote),
            }
            for number, vote in enumerate(lattice.votes, start=1)
        ],
        "defects": [
            {
                "patch": defect.patch,
                "position": defect.position.tolist(),
                "fold": defect.fold,
                "step": list(defect.step),
            }
            for defect in lattice.defects
        ],
        "notes": found.notes,
    }
