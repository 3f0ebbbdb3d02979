"""NRRD by pynrrd, which reads and writes files as a whole; unpacked voxels are mapped instead."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.stack import (
    FileArray,
    Source,
    StackLayout,
    library_errors,
    micrometres,
    whole_of,
)

PLACEMENT = ("space", "space dimension", "space directions", "space origin", "space units")
"""Header fields that say where the stack stands; carried to an output."""
PACKED = ("gzip", "gz", "bzip2", "bz2")
"""Encodings of bytes that must be unpacked."""
ELSEWHERE = ("data file", "datafile", "line skip", "lineskip", "byte skip", "byteskip")
"""Header fields of files whose voxels do not begin right behind the header."""


def read(path: Path, key: str | None) -> Source:
    """Open a file; its voxels are mapped if they stand there unpacked, else loaded when needed."""
    import nrrd

    with library_errors(path):
        with open(path, "rb") as file:
            header = nrrd.read_header(file)
            offset = file.tell()
        shape = tuple(int(length) for length in header["sizes"])
        dimension, encoding = header["dimension"], header["encoding"]
        dtype = _dtype(header)
        axes, spacing = _axes(header, len(shape))
        placement = _placement(header, axes)
    if dimension != len(shape) or min(shape) < 1:
        raise UserError(f"{path}: damaged: its header speaks of sizes {shape}")
    if encoding == "raw" and not any(name in header for name in ELSEWHERE):
        mapped = FileArray.found(
            path, lambda: np.memmap(path, dtype, "r", offset, shape, order="F")
        )
        return Source(mapped, axes, spacing, placement=placement)

    @functools.cache
    def load() -> np.ndarray:
        return nrrd.read(str(path), index_order="F")[0]

    size = math.prod(shape) * dtype.itemsize
    return Source(FileArray(path, shape, dtype, load), axes, spacing, size, placement)


def _placement(header: Mapping[str, Any], axes: str) -> dict[str, Any]:
    """Return the header's fields on the place in space, under our names."""
    placement = {f"nrrd {name}": header[name] for name in PLACEMENT if name in header}
    if "nrrd space directions" in placement:
        vectors = [header["space directions"][k] for k, axis in enumerate(axes) if axis != "C"]
        placement["nrrd space directions"] = np.array(vectors, float)
    return placement


def _dtype(header: Mapping[str, Any]) -> np.dtype:
    """Return the type of the voxels: pynrrd's answer for a single one."""
    import nrrd

    single = {name: value for name, value in header.items() if name not in ELSEWHERE}
    single.update(sizes=np.array([1]), dimension=1, encoding="raw")
    if header["encoding"] not in PACKED and header["encoding"] != "raw":
        single.setdefault("endian", "little")  # text has no order of bytes
    return nrrd.read_data(single, io.BytesIO(bytes(16))).dtype


def _axes(header: Mapping[str, Any], count: int) -> tuple[str, dict[str, float]]:
    """Return a letter an axis (X, Y, Z or C), and the micrometres along those in space."""
    directions = header.get("space directions")
    sizes = np.full(count, math.nan)
    if directions is not None:
        vectors = [np.full(1, math.nan) if v is None else np.ravel(v) for v in directions]
        sizes = np.array([float(np.linalg.norm(vector)) for vector in vectors])
    elif "spacings" in header:
        sizes = np.asarray(header["spacings"], np.float64)
    kinds = list(header.get("kinds", []))
    if kinds:
        spatial = [k for k in range(count) if kinds[k] in ("domain", "space")]
    else:
        spatial = [k for k in range(count) if np.isfinite(sizes[k])] or list(range(min(count, 3)))
    letters = ["C"] * count
    for letter, axis in zip("XYZ", spatial, strict=False):
        letters[axis] = letter
    units = header.get("space units") or header.get("units") or ["um"] * 3
    spacing = {
        letters[axis]: sizes[axis] * micrometres(str(units[min(k, len(units) - 1)]))
        for k, axis in enumerate(spatial)
    }
    return "".join(letters), spacing


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a file packed with gzip; takes the whole stack into memory."""
    import nrrd

    header = {"encoding": "gzip", **_placed(layout)}
    voxels = whole_of(slabs, layout)
    nrrd.write(str(path), voxels, header, index_order="F", compression_level=1)


def _placed(layout: StackLayout) -> dict[str, Any]:
    """Return the header fields on spacing and place; a box needs directions to have an origin."""
    count = len(layout.shape)
    known = {k.removeprefix("nrrd "): v for k, v in layout.placement.items() if "nrrd " in k}
    moved = any(layout.shift)
    if "space directions" not in known:
        if not layout.spacing:
            return {"kinds": ["domain"] * count}
        if not moved:
            spacings = {"spacings": list(layout.spacing), "units": ["um"] * count}
            return {"kinds": ["domain"] * count, **spacings}
        known = {"space dimension": count, "space directions": np.diag(layout.spacing)}
        known["space units"] = ["um"] * count
    directions = np.asarray(known["space directions"], float)[:count]  # of a single plane two
    known["space directions"] = directions
    if moved:
        first = np.asarray(known.get("space origin", np.zeros(directions.shape[-1])), float)
        known["space origin"] = first + layout.origin @ directions
    return {"kinds": ["space"] * count, **known}
