"""NRRD by pynrrd, which reads and writes files as a whole; unpacked voxels are mapped instead."""

from __future__ import annotations

import functools
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import UserError
from utils.stacks.axes import MOST_CHANNELS
from utils.stacks.place import Place
from utils.stacks.stack import (
    FileArray,
    Source,
    StackLayout,
    library_errors,
    whole_of,
)
from utils.stacks.units import micrometres_per

UNITS = {1e6: "m", 1e3: "mm", 1.0: "um", 1e-3: "nm"}
"""Names of units that outputs are written in, by their micrometres."""
PACKED = ("gzip", "gz", "bzip2", "bz2")
"""Encodings of bytes that must be unpacked."""
ELSEWHERE = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip")
"""Header fields of files whose voxels do not begin right behind the header."""


def read(path: Path) -> Source:
    """Open a file; its voxels are mapped if they stand there unpacked, else loaded when needed."""
    import nrrd

    with library_errors(path):
        with open(path, "rb") as file:
            header = nrrd.read_header(_lines(path, file))
            offset = file.tell()
        shape = tuple(int(length) for length in header["sizes"])
        dimension, encoding = header["dimension"], header["encoding"]
        dtype = _dtype(header)
        axes, place = _axes(header, len(shape))
    if dimension != len(shape) or min(shape) < 1:
        raise UserError(f"{path}: damaged: its header speaks of sizes {shape}")
    if encoding == "raw" and not any(name in header for name in ELSEWHERE):
        mapped = FileArray.found(
            path, lambda: np.memmap(path, dtype, "r", offset, shape, order="F")
        )
        return Source(mapped, axes, place=place)

    @functools.cache
    def load() -> np.ndarray:
        return nrrd.read(str(path), index_order="F")[0]

    size = math.prod(shape) * dtype.itemsize
    return Source(FileArray(path, shape, dtype, load), axes, loaded=size, place=place)


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Yield the header's lines as text: of bytes pynrrd would drop the sign of micro."""
    for line in iter(file.readline, b""):
        if re.match(rb"data ?file:\s*(LIST|.*%)", line):
            raise UserError(f"{path}: its voxels lie in several files; save it as one .nrrd")
        yield line.decode("latin-1")


def _dtype(header: Mapping[str, Any]) -> np.dtype:
    """Return the type of the voxels: pynrrd's answer for a single one."""
    import nrrd

    single = {name: value for name, value in header.items() if name not in ELSEWHERE}
    single.update(sizes=np.array([1]), dimension=1, encoding="raw")
    if header["encoding"] not in PACKED and header["encoding"] != "raw":
        single.setdefault("endian", "little")  # text has no order of bytes
    return nrrd.read_data(single, io.BytesIO(bytes(16))).dtype


def _axes(header: Mapping[str, Any], count: int) -> tuple[str, Place]:
    """Return a letter an axis (X, Y, Z or C), and where those in space stand."""
    directions = header.get("space directions")
    sizes = np.full(count, math.nan)
    if directions is not None:
        vectors = [np.full(1, math.nan) if v is None else np.ravel(v) for v in directions]
        sizes = np.array([float(np.linalg.norm(vector)) for vector in vectors])
    elif "spacings" in header:
        sizes = np.asarray(header["spacings"], np.float64)
    kinds = list(header.get("kinds", [""] * count))
    spatial = [k for k in range(count) if kinds[k] in ("domain", "space")]
    if not spatial:
        spatial = [k for k in range(count) if np.isfinite(sizes[k])]
    if not any(kinds) and directions is None:  # a size that is unknown, not an axis without one
        long = [k for k in range(count) if header["sizes"][k] > MOST_CHANNELS or not spatial]
        spatial = sorted([*spatial, *(k for k in long if k not in spatial)][:3])
    letters = ["T" if kind == "time" else "C" for kind in kinds]
    for letter, axis in zip("XYZ", spatial, strict=False):
        letters[axis] = letter
    spatial = spatial[:3]
    if directions is not None:
        names = list(header.get("space units", ()))
        lengths = np.array([micrometres_per(str(name)) for name in names] or [math.nan])
        steps = np.array([np.ravel(directions[axis]) for axis in spatial], float).T
        first = np.array(header.get("space origin", np.zeros(len(steps))), float)
        place = Place(steps, first, float(lengths[0]), str(header.get("space", "")))
        if len({*lengths.tolist()}) > 1:
            place = _in_micrometres(place, lengths)
        if place.usable:
            return "".join(letters), place
    names = list(header.get("units", [""] * count))
    units = {letters[axis]: str(names[axis]) for axis in spatial}
    return "".join(letters), Place.measured({a: sizes[letters.index(a)] for a in units}, units)


def _in_micrometres(place: Place, lengths: np.ndarray) -> Place:
    """Return the place where each axis of space has a unit of its own; NaN for an unknown one.

    Axes of the stack that lead along such a one get the size of the finest of the others; if all
    do, the numbers are a ratio.
    """
    known = np.isfinite(lengths)
    guessed = place.steps[~known].any(0)
    if guessed.all():
        return replace(place, unit=math.nan)
    if guessed.any():
        finest = np.linalg.norm(place.steps[known] * lengths[known, None], axis=0)[~guessed].min()
        lengths = np.where(known, lengths, finest / np.abs(place.steps).max(1))
    steps, first = place.steps * lengths[:, None], place.first * lengths
    axes = "".join(itertools.compress("XYZ", guessed))
    return replace(place, steps=steps, first=first, unit=1.0, guessed=axes)


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a file packed with gzip; takes the whole stack into memory."""
    import nrrd

    header = {"encoding": "gzip", **_placed(layout.placed)}
    voxels = whole_of(slabs, layout)
    nrrd.write(str(path), voxels, header, index_order="F", compression_level=1)


def _placed(place: Place) -> dict[str, Any]:
    """Return the header fields on sizes and place; those without either have sizes at most."""
    place = place if place.unit in UNITS else place.in_units(1.0)
    ways, axes = place.steps.shape
    known = math.isfinite(place.unit)
    if not (place.turned or place.first.any() or place.space):
        told = np.where([a in place.guessed for a in "XYZ"[:axes]], math.nan, place.sizes)
        sizes = {"spacings": told} if place.tells_ratio else {}
        return {
            **{"kinds": ["domain"] * axes, **sizes},
            **({"units": [UNITS[place.unit]] * axes} if known else {}),
        }
    return {
        "kinds": ["space"] * axes,
        **({"space": place.space} if place.space else {"space dimension": ways}),
        **({"space units": [UNITS[place.unit]] * ways} if known else {}),
        "space directions": place.steps.T,
        "space origin": place.first,
    }
