"""NRRD by pynrrd, which reads and writes files as a whole; unpacked voxels are mapped instead."""

import functools
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import nrrd
import numpy as np

from utils.errors import UserError
from utils.stacks.axes import MOST_CHANNELS
from utils.stacks.place import Place, micrometres_per
from utils.stacks.stack import Contents, FileArray, StackLayout, library_errors, whole_of

KEEPS = ("voxel size", "place", "directions")
UNITS = {1e6: "m", 1e3: "mm", 1.0: "um", 1e-3: "nm"}  # of outputs, by their micrometres
ELSEWHERE = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip")
"""Header fields of files whose voxels do not begin right behind the header."""


def contents(path: Path) -> Contents:
    """Open a file; its voxels are mapped if they stand there unpacked, else loaded when needed."""
    with library_errors(path):
        with open(path, "rb") as file:
            header = nrrd.read_header(_lines(path, file))
            offset = file.tell()
        shape, dtype = tuple(int(length) for length in header["sizes"]), _dtype(header)
        if header["dimension"] != len(shape) or min(shape) < 1:
            raise UserError(f"{path}: damaged: its header speaks of sizes {shape}")
        axes, place = _axes(header, len(shape))
        mapped = header["encoding"] == "raw" and not any(name in header for name in ELSEWHERE)
    told = {"axes": axes, "place": place}
    if mapped:
        load = functools.partial(np.memmap, path, dtype, "r", offset, shape, order="F")
        only = FileArray.found(path, load, **told)
    else:
        load = functools.cache(lambda: nrrd.read(str(path), index_order="F")[0])
        told["loaded"] = math.prod(shape) * dtype.itemsize
        only = FileArray(path, shape, dtype, lambda where: load()[where], **told)
    return Contents(path, {"": only}, lambda name: only)


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    """Yield the header's lines as text: of bytes pynrrd would drop the sign of micro."""
    for line in iter(file.readline, b""):
        if re.match(rb"data ?file:\s*(LIST|.*%)", line):
            raise UserError(f"{path}: its voxels lie in several files; save it as one .nrrd")
        yield line.decode("latin-1")


def _dtype(header: Mapping[str, Any]) -> np.dtype:
    """Return the type of the voxels: pynrrd's answer for a single one."""
    single = {name: value for name, value in header.items() if name not in ELSEWHERE}
    single.update(sizes=np.array([1]), dimension=1, encoding="raw")
    if header["encoding"] not in ("raw", "gzip", "gz", "bzip2", "bz2"):
        single.setdefault("endian", "little")  # text has no order of bytes
    return nrrd.read_data(single, io.BytesIO(bytes(16))).dtype


def _axes(header: Mapping[str, Any], count: int) -> tuple[str, Place]:
    """Return a letter an axis (X, Y, Z, T or C), and where those in space stand."""
    directions, kinds = header.get("space directions"), list(header.get("kinds", [""] * count))
    sizes = np.asarray(header.get("spacings", [math.nan] * count), np.float64)
    if directions is not None:
        sizes = np.linalg.norm(directions, axis=1)
    spatial = [k for k in range(count) if kinds[k] in ("domain", "space")]
    spatial = spatial or [k for k in range(count) if np.isfinite(sizes[k])]
    if not any(kinds) and directions is None:  # a size that is unknown, not an axis without one
        long = [k for k in range(count) if header["sizes"][k] > MOST_CHANNELS or not spatial]
        spatial = sorted([*spatial, *(k for k in long if k not in spatial)][:3])
    letters = ["T" if kind == "time" else "C" for kind in kinds]
    for letter, axis in zip("XYZ", spatial, strict=False):
        letters[axis] = letter
    if directions is not None:
        steps = np.array(directions, float)[spatial[:3]].T
        lengths = np.array([micrometres_per(str(n)) for n in header.get("space units", [""])])
        first = np.array(header.get("space origin", np.zeros(len(steps))), float)
        if lengths.min() < lengths.max():  # each axis of space has a unit of its own
            steps, first, lengths = steps * lengths[:, None], first * lengths, np.ones(1)
        place = Place(steps, first, float(lengths.max()), str(header.get("space", "")))
        if place.usable:
            return "".join(letters), place
    names = list(header.get("units", [""] * count))
    units = {letters[axis]: str(names[axis]) for axis in spatial[:3]}
    return "".join(letters), Place.measured({a: sizes[letters.index(a)] for a in units}, units)


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a file packed with gzip; takes the whole stack into memory."""
    place = layout.placed.in_units(UNITS)
    ways, axes = place.steps.shape
    unit, header = UNITS.get(place.unit), {"encoding": "gzip"}
    if place.turned or place.first.any() or place.space:
        header |= {"kinds": ["space"] * axes}
        header |= {"space": place.space} if place.space else {"space dimension": ways}
        header |= {"space units": [unit] * ways} if unit else {}
        header |= {"space directions": place.steps.T, "space origin": place.first}
    else:  # sizes at most
        told = np.where([a in place.guessed for a in "XYZ"[:axes]], math.nan, place.sizes)
        header |= {"kinds": ["domain"] * axes, **({"spacings": told} if place.tells_ratio else {})}
        header |= {"units": [unit] * axes} if unit else {}
    nrrd.write(str(path), whole_of(slabs, layout), header, index_order="F", compression_level=1)
