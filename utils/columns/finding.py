"""From a stack of probabilities, a mask or labels to columns and the files that hold them.

Stacks that do not fit the memory are worked off in blocks that overlap, so that no column is cut.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from utils.columns.blocks import MARGIN, Box, Room, find_in_blocks, slabs
from utils.columns.corrections import Corrections, fixed_columns, numbered
from utils.columns.instances import depth, find_instances, reshape, spreading
from utils.columns.landmarks import orient
from utils.columns.lattice import Lattice, fit_lattice
from utils.columns.mending import mend_from_lattice
from utils.columns.smoothing import smooth_along
from utils.columns.table import Measured, measure_columns, table_of
from utils.errors import UserError
from utils.prediction.memory import Memory, check_loading
from utils.provenance import describe_program
from utils.replacing import replacing
from utils.stacks import Stack, StackLayout, split_ending, write_stack

HALF = 0.5
"""Probability from which a voxel belongs to a column; also the share of touching voxels of equal
value from which whole numbers are labels and no grey values."""
HELD = 0.9
"""Share of that probability which a voxel must have once it is smoothed along the columns, where
holes, and a column's weaker parts, pull the mean down."""
JOINED = 0.9
"""Columns are taken from the smoothed map only where they are fewer than so many of those of the
map as it is: whole ones lose a little. Measured: 0.905 to 1.01 on 12 default volumes, of which two
lose 0.01 and 0.05 of F1 by centre line and none wins more than 0.003; below 0.9 on 8 of 12 wide
ones, all of which win."""
SAMPLE, ENOUGH = 128, 30
"""Edge of the box in the middle of which that is decided, in voxels, and columns that it must hold;
with fewer the whole stack is asked."""
BETWEEN = 0.7
"""Share of that probability that the map must have all the way from one piece of a column to the
other for them to become one."""
FITTING = 0.5
"""Share of the columns with a place and no neighbour across a cut, below which a user is warned.
Measured: 0.91 to 1.00 on four default volumes, 0.09 on smoothed noise, 0.15 on a failed map."""
FILLED = 0.9
"""Share of their cells that columns fill, from which a user is warned: disks of a radius of 0.35
spacing fill 0.44 of a hexagonal lattice, those that touch 0.91, and a whole sheet all of it."""
BLOCK_BYTES = 100
"""Taken at the peak for each voxel of a block. Measured on 126^3 voxels: 36 of a map with 25 % of
foreground, 68 with 75 %, and 85 of a mask with 75 %, for the tree of distances."""
IN_MEMORY = Room()

Found = tuple[np.ndarray, np.ndarray, float]
"""Labels, the heights that they were found in, and what a column has of these at least."""


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
    fixed: int = 0
    """Columns whose (p, q) a person gave."""

    @property
    def free(self) -> list[str]:
        """Names of the landmarks that nothing settles."""
        given = dataclasses.asdict(self.landmarks).items()
        settled = ("origin", "dorsal") if self.fixed else ()
        return [name for name, value in given if value is None and name not in settled]


def columns_of(
    volume: np.ndarray,
    steps: tuple[float, ...],
    *,
    threshold: float | None = None,
    channels: Mapping[int, np.ndarray] | None = None,
    landmarks: Landmarks | None = None,
    corrections: Corrections | None = None,
    shift: tuple[float, ...] = (0.0, 0.0, 0.0),
    room: Room = IN_MEMORY,
) -> FoundColumns:
    """Return the columns of a probability map, a mask, labels or grey values.

    Args:
        volume: (X, Y, Z) of any real dtype; voxels that are not finite are background.
        steps: edge of a voxel along x, y, z.
        threshold: value from which a voxel belongs to a column; None: 0.5 of probabilities, Otsu's
            for grey values.
        channels: (X, Y, Z) grey values to measure, by the channel's number.
        landmarks: for the lattice.
        corrections: labels that are the instances, or rows whose (p, q) stay.
        shift: way from the file's voxel 0 to that of ``volume``, as ``steps``.
        room: where the labels lie, and how much is worked on at once.

    Raises:
        UserError: for an image in 2D, an origin that is no column with a place, rows that are no
            columns, and landmarks beside them.
    """
    if volume.ndim != 3:
        raise UserError(f"an image of {volume.ndim} axes: columns are found in stacks of three")
    landmarks, corrections = landmarks or Landmarks(), corrections or Corrections()
    if corrections.rows is not None and not (landmarks.origin is landmarks.dorsal is None):
        raise UserError("--origin, --dorsal: not beside rows of --corrections: their p, q say both")
    reading, cut, mended = _read_as(volume, threshold), 0, (0, 0)
    lattice: Lattice | None = None
    fixed: tuple[np.ndarray, np.ndarray] | None = None
    note = reading.note
    if corrections.labels is not None:
        labels, note = corrections.labels, "instances: the corrected labels"
    else:
        labels, cut = _instances(volume, steps, reading, room)
    score = volume if reading.kind == "probabilities" else None
    measured = measure_columns(labels, steps, score, channels)
    if reading.kind != "labels" and corrections.labels is None:
        lattice = fit_lattice(measured.centre, measured.axis, paths=measured.paths)
        bright = functools.partial(_may_be_columns, volume, reading)
        mended = mend_from_lattice(labels, measured, lattice, steps, bright)
    if any(mended):
        measured = measure_columns(labels, steps, score, channels)
    if corrections.rows is not None:
        fixed = fixed_columns(corrections.rows, labels, steps, shift)
    if lattice is None or any(mended) or fixed is not None:
        lattice = fit_lattice(measured.centre, measured.axis, paths=measured.paths, fixed=fixed)
    if fixed is None:
        row = None if landmarks.origin is None else landmarks.origin - 1
        dorsal = None if landmarks.dorsal is None else np.array(landmarks.dorsal)
        lattice = orient(
            lattice, measured.axis, origin=row, dorsal=dorsal, hemisphere=landmarks.hemisphere
        )
    found = FoundColumns(labels, measured, lattice, steps, landmarks)
    if fixed is not None:
        found = dataclasses.replace(found, fixed=len(fixed[0]))
    found.notes.extend(_notes(found, note))
    if any(mended):
        joined, parted = mended
        found.notes.append(f"lattice: mended {joined} splits and {parted} merges")
    if cut:
        found.notes.append(f"{cut} columns may be cut: too long for the memory; raise --memory")
    return found


def _notes(found: FoundColumns, note: str) -> list[str]:
    """Return lines for the user, after ``note`` on how the volume was read."""
    measured, lattice = found.measured, found.lattice
    count, placed = len(measured.axis), int(np.count_nonzero(lattice.patch))
    notes = [note, f"columns: {count}" if count else "columns: none; nothing reaches the threshold"]
    if count > 1:
        clear = spreading(measured.axis, measured.centre)
        notes.append(
            "axes: towards the side where columns spread, taken for distal "
            f"({clear:.2f}; 1: all neighbours spread, 0: no side is told)"
        )
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
        notes += _doubts(found)
        if found.fixed:
            notes.append(f"lattice: grown around {found.fixed} columns whose p, q were given")
        if found.free:
            notes.append(f"lattice: free, for want of a landmark: {', '.join(found.free)}")
    return notes


def _doubts(found: FoundColumns) -> list[str]:
    """Return warnings of a lattice that says that the mask has failed."""
    lattice, measured = found.lattice, found.measured
    fits = lattice.patch > 0
    cell = np.linalg.norm(np.cross(*np.moveaxis(lattice.steps[fits], 2, 0)), axis=1)
    volume = measured.count[fits] * np.prod(found.steps)
    filled = float(np.median(volume / np.maximum(cell * measured.length[fits], 1e-9)))
    fits[np.unique(lattice.pairs[lattice.cut != 0])] = False
    warnings = []
    if fits.mean() < FITTING:
        warnings.append(
            f"warning: only {fits.mean():.0%} of the columns fit the lattice without contradiction "
            "to a neighbour: do not trust it; see whether the mask shows columns"
        )
    if filled > FILLED:
        warnings.append(
            f"warning: the columns fill {filled:.0%} of the room that they have: the mask may be "
            "the whole sheet, and its columns made up"
        )
    return warnings


@dataclass(frozen=True)
class Reading:
    """What the values of a stack are taken for."""

    kind: str
    """``probabilities``, ``labels`` or ``mask``."""
    least: float
    """Value from which a voxel belongs to a column; NaN: any but 0."""
    note: str

    def foreground(self, values: np.ndarray) -> np.ndarray:
        """Return where columns are in ``values``, which are finite."""
        return values != 0 if math.isnan(self.least) else values >= self.least


def _read_as(volume: np.ndarray, threshold: float | None) -> Reading:
    """Return what a stack is read as: its values tell a map, labels, a mask and grey values."""
    lost, pairs, equal, whole = 0, 0, 0, True
    ends, inside = [math.inf, -math.inf], [math.inf, -math.inf]
    for _, slab in slabs(volume):
        values = _finite(slab)
        lost += slab.size - int(np.count_nonzero(np.isfinite(slab)))
        whole = whole and (slab.dtype.kind in "bui" or not np.any(values % 1))
        ends = [min(ends[0], values.min()), max(ends[1], values.max())]
        if whole or not 0 <= ends[0] <= ends[1] <= 1:
            if len(some := values[values != 0]):
                inside = [min(inside[0], some.min()), max(inside[1], some.max())]
            pair = (values[1:] != 0) & (values[:-1] != 0)
            pairs += int(np.count_nonzero(pair))
            equal += int(np.count_nonzero(pair & (values[1:] == values[:-1])))
    missing = f"; {lost} voxels that are not finite are background" if lost else ""
    if not whole and ends[0] >= 0 and ends[1] <= 1:
        least = HALF if threshold is None else threshold
        note = f"read as a probability map: columns from {least:g} on{missing}"
        return Reading("probabilities", least, note)
    several = bool(inside[0] < inside[1])
    if threshold is None and whole and ends[0] >= 0 and several and equal >= HALF * pairs:
        return Reading("labels", math.nan, f"read as labels, kept as they are{missing}")
    if threshold is not None:
        return Reading(
            "mask", threshold, f"read as a mask of values from {threshold:g} on{missing}"
        )
    if not several:
        return Reading("mask", math.nan, f"read as a mask of values that are not 0{missing}")
    least = _otsu(volume, *(float(end) for end in ends), whole=whole)
    note = f"read as grey values, columns above {least:g} (Otsu's threshold){missing}"
    return Reading("mask", np.nextafter(np.float64(least), np.inf), note)


def _otsu(volume: np.ndarray, low: float, high: float, *, whole: bool) -> float:
    """Return Otsu's threshold from a histogram that is counted slab by slab."""
    bins = int(high - low) + 1 if whole and high - low < 2**16 else 256
    edges = (low - 0.5, high + 0.5) if bins == high - low + 1 else (low, high)
    counts = np.zeros(bins, np.int64)
    for _, slab in slabs(volume):
        counts += np.histogram(_finite(slab), bins, edges)[0]
    middles = edges[0] + (np.arange(bins) + 0.5) * (edges[1] - edges[0]) / bins
    return float(threshold_otsu(hist=(counts, middles)))


def _finite(values: np.ndarray) -> np.ndarray:
    """Return ``values`` with 0 for those that are not finite."""
    whole = values.dtype.kind in "bui" or np.isfinite(values).all()
    return values if whole else np.where(np.isfinite(values), values, 0)


def _instances(
    volume: np.ndarray, steps: tuple[float, ...], reading: Reading, room: Room
) -> tuple[np.ndarray, int]:
    """Return labels of the columns, and how many of them may be cut for want of room."""
    if reading.kind == "labels":
        return numbered(volume, room.array(volume.shape, np.int32)), 0

    is_map = reading.kind == "probabilities"

    def tell_apart(heights: np.ndarray, foreground: np.ndarray) -> np.ndarray:
        found = np.zeros(foreground.shape, np.int32)
        for part in ndimage.find_objects(foreground.view(np.uint8)):  # one at most
            inner = foreground[part]
            height = heights[part] if is_map else depth(inner, steps)
            found[part] = find_instances(height, inner, steps)
        return found

    def as_it_is(heights: np.ndarray, foreground: np.ndarray) -> Found:
        least = reading.least if is_map else HALF
        return tell_apart(heights, foreground), heights, least

    def smoothed(heights: np.ndarray, foreground: np.ndarray) -> Found:
        smooth = smooth_along(heights, steps)
        if smooth is heights:
            return as_it_is(heights, foreground)
        least = HELD * (reading.least if is_map else HALF)
        # What was in a column stays: the mean falls towards its ends.
        return tell_apart(smooth, (smooth >= least) | foreground), (smooth + heights) / 2, least

    def find(box: Box) -> np.ndarray:
        values = _finite(volume[box])
        foreground = reading.foreground(values)
        heights = np.ascontiguousarray(values if is_map else foreground, np.float32)
        ways = as_it_is, smoothed
        for part in (_middle(foreground), (slice(None),) * 3):
            some = np.ascontiguousarray(heights[part])
            found = [way(some, foreground[part]) for way in ways]
            count, whole = (int(labels.max(initial=0)) for labels, _, _ in found)
            if count >= ENOUGH or found[0][0].shape == foreground.shape:
                break
        best = int(whole < JOINED * count)
        if found[best][0].shape != foreground.shape:
            found[best] = ways[best](heights, foreground)
        return reshape(*found[best], steps) if is_map else found[best][0]

    return find_in_blocks(find, volume.shape, room)


def _middle(foreground: np.ndarray) -> Box:
    """Return a box of at most :data:`SAMPLE` voxels an edge about the middle one in columns."""
    inside = np.flatnonzero(foreground)
    middle = np.unravel_index(inside[len(inside) // 2] if len(inside) else 0, foreground.shape)
    starts = [
        int(np.clip(m - SAMPLE // 2, 0, max(n - SAMPLE, 0)))
        for m, n in zip(middle, foreground.shape, strict=True)
    ]
    return tuple(slice(start, start + SAMPLE) for start in starts)


def _may_be_columns(volume: np.ndarray, reading: Reading, voxels: np.ndarray) -> np.ndarray:
    """Return where a column may go on, of ``voxels`` (..., 3) of the stack or of its border."""
    voxels = np.clip(voxels, 0, np.array(volume.shape) - 1)
    values = _finite(volume[tuple(np.moveaxis(voxels, -1, 0))])
    is_map = reading.kind == "probabilities"
    return values >= BETWEEN * reading.least if is_map else reading.foreground(values)


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
    parts = (slab.astype(dtype) for _, slab in slabs(found.labels))
    write_stack(files["labels"], parts, layout)
    hemisphere = found.landmarks.hemisphere
    shift = _shift(stack, found.steps)
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
    channels: Mapping[int, Stack] | None = None,
    landmarks: Landmarks | None = None,
    corrections: Corrections | None = None,
    memory: float | None,
    script: str,
) -> FoundColumns:
    """Find the columns of a stack, write their files but the pictures, and return them.

    Args:
        stack: probabilities, mask, labels or grey values.
        files: of :func:`column_files`.
        threshold: of :func:`columns_of`.
        channels: stacks of grey values to measure, by the channel's number.
        landmarks: of :func:`columns_of`.
        corrections: of :func:`columns_of`.
        memory: most that may be taken, in GB; None: most of what is free.
        script: path of the script that asks.

    Raises:
        UserError: for a stack that is too large for the memory, and as :func:`columns_of`.
    """
    steps = stack.spacing or (1.0,) * len(stack.shape)
    measured = channels or {}
    room = make_room(stack, len(measured), Memory.allowed(memory), files["labels"].parent)
    found = columns_of(
        room.load(stack),
        steps,
        threshold=threshold,
        channels={number: room.load(channel) for number, channel in measured.items()},
        landmarks=landmarks,
        corrections=corrections,
        shift=_shift(stack, steps),
        room=room,
    )
    if stack.spacing is not None:
        found = dataclasses.replace(found, unit="\u00b5m")
    about = {"input": str(stack.path), "program": describe_program(script)}
    write_columns(found, stack, files, about)
    return found


def make_room(stack: Stack, channels: int, memory: Memory, folder: Path) -> Room:
    """Return room in memory for a stack, its channels and its labels if it fits, else on the disk.

    Raises UserError where not even a block fits.
    """
    check_loading(stack, memory)
    voxels = math.prod(stack.shape)
    free = memory.limit - memory.peak(0)
    arrays = voxels * ((1 + channels) * stack.dtype.itemsize + np.dtype(np.int32).itemsize)
    if arrays + voxels * BLOCK_BYTES <= free:
        return IN_MEMORY
    least = math.prod(min(n, 5 * MARGIN) for n in stack.shape)
    what = f"{stack.path}: to find its columns takes"
    memory.check(least * BLOCK_BYTES, what, ", or take a part with --crop")
    return Room(folder, free // BLOCK_BYTES)


def _shift(stack: Stack, steps: tuple[float, ...]) -> tuple[float, ...]:
    """Return the way from the file's voxel 0 to the stack's, which may be a box cut out."""
    return tuple(n * step for n, step in zip(stack.origin, steps, strict=True))


def _side(found: FoundColumns, stack: Stack) -> dict[str, Any]:
    """Return what the tables do not say, as plain JSON."""
    lattice, measured = found.lattice, found.measured
    place = stack.place.moved([-n for n in stack.origin]).in_units()
    return {
        "landmarks": {
            name: value or ("free" if name in found.free else "as p, q were given")
            for name, value in dataclasses.asdict(found.landmarks).items()
        },
        "unit": "voxel" if stack.spacing is None else "micrometre",
        "positions": "x, y, z from the centre of the file's first voxel",
        "file": {
            "first_voxel": place.first.tolist(),
            "way_to_next_voxel": place.steps.T.tolist(),
            "space": place.space,
        }
        if place.usable
        else None,
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
