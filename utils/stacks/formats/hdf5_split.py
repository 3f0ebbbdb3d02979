"""Stacks in HDF5 of which each channel and time point is an array: BigDataViewer's and Imaris's.

BigDataViewer: https://imagej.net/plugins/bdv, setups are channels; it keeps uint16 in arrays that
are called int16. Imaris: https://imaris.oxinst.com (its file format 5.5), arrays that are longer
than the stack, and attributes as arrays of single letters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.formats.hdf5_parts import packed_chunks, readable, warn_of_absent
from utils.stacks.place import Place
from utils.stacks.stack import FileArray, MadeArray, Source, library_errors
from utils.stacks.units import number_in

BDV = re.compile(r"(?P<within>(?:.+/)?)t(?P<time>\d{5,})/s(?P<channel>\d{2,})/(?P<level>\d+)/cells")
IMARIS = re.compile(
    r"(?P<within>)DataSet/ResolutionLevel (?P<level>\d+)/TimePoint (?P<time>\d+)/"
    r"Channel (?P<channel>\d+)/Data"
)
Sizes = Mapping[int, Place]
"""Voxel sizes by the number of a setup."""


def file_of(path: Path) -> tuple[Path, Sizes]:
    """Return the HDF5 file that BigDataViewer's ``.xml`` names, and the voxel sizes of its setups.

    The ``.xml`` is the path itself, or stands beside an HDF5 file of the same name. UserError if it
    names no HDF5 file, or one that is absent.
    """
    from xml.etree import ElementTree

    described = path.with_suffix(".xml")
    if path != described and not (described.is_file() and b"<SpimData" in described.read_bytes()):
        return path, {}
    with library_errors(described):
        root = ElementTree.parse(described).getroot()
        loader = root.find(".//ImageLoader")
        kind = "" if loader is None else loader.get("format", "")
        named = None if loader is None else loader.findtext("hdf5")
        sizes = {int(s.findtext("id", "")): _size(s) for s in root.findall(".//ViewSetup")}
    if path != described:
        return path, sizes
    if named is None:
        said = f"its images are kept as {kind}" if kind else "it names no images"
        raise UserError(f"{path}: {said}; of BigDataViewer's XML those with HDF5 are read")
    file = path.parent / named.strip()
    if not file.is_file():
        raise UserError(f"{path}: names the HDF5 file {file}, which is absent")
    return file, sizes


def _size(setup: Any) -> Place:
    """Return the voxel size of an element ``ViewSetup``."""
    numbers = map(number_in, setup.findtext("voxelSize/size", "").split())
    unit = setup.findtext("voxelSize/unit", "")
    return Place.measured(dict(zip("XYZ", numbers, strict=False)), dict.fromkeys("XYZ", unit))


def split_stacks(
    path: Path, file: Any, arrays: Mapping[str, Any], sizes: Sizes
) -> dict[str, Source]:
    """Return the stacks at full resolution by the name for ``--key``, empty for the only one."""
    full, places = {}, set()
    for name, array in arrays.items():
        match = BDV.fullmatch(name) or IMARIS.fullmatch(name)
        if match and int(match["level"]) == 0:
            full[int(match["time"]), int(match["channel"])] = array, match
            places.add(match["within"])
    if len(places) > 1:  # stacks of their own, each array to be named
        return {}
    times = sorted({time for time, _ in full})
    channels = sorted({channel for _, channel in full})
    with library_errors(path):
        kinds = {
            (channel, array.shape, array.dtype, str(sizes.get(channel)))
            for (_, channel), (array, _) in full.items()
        }
    if len(kinds) > len(channels):  # a channel's time points differ
        return {}
    alike = len({kind[1:] for kind in kinds}) == 1
    groups = {"": channels} if alike else {f"s{channel:02d}": [channel] for channel in channels}
    stacks = {}
    for key, group in groups.items():
        taken = {(t, c): found for (t, c), found in full.items() if c in group}
        parts = {(times.index(t), group.index(c)): array for (t, c), (array, _) in taken.items()}
        match = next(iter(taken.values()))[1]
        stacks[key] = _stack(path, file, parts, match, sizes)
    return stacks


def split_part(path: Path, file: Any, name: str, array: Any, sizes: Sizes) -> Source | None:
    """Return one of the arrays as a stack, if by its name it is one of these programs'."""
    match = BDV.fullmatch(name) or IMARIS.fullmatch(name)
    return match and _stack(path, file, {(0, 0): array}, match, sizes)


def _stack(
    path: Path,
    file: Any,
    parts: Mapping[tuple[int, int], Any],
    match: re.Match[str],
    sizes: Sizes,
) -> Source:
    """Return arrays by place along T and C as one stack (T, C, Z, Y, X); one may be absent.

    ``match`` is of the name of one.
    """
    one = next(iter(parts.values()))
    with library_errors(path):
        dtype, size = one.dtype, one.shape
        if match.re is BDV:
            placed = _scaled(file, match, sizes)
            dtype = np.dtype(f"{dtype.byteorder}u2") if dtype == np.int16 else dtype
        else:
            size, placed = _true_size(file, one)
    if len(size) != len(one.shape) or any(a > b for a, b in zip(size, one.shape, strict=True)):
        raise UserError(f"{path}: damaged: {one.name} of {one.shape} is smaller than {size}")
    loaded = {
        place: FileArray.found(path, lambda array=array: readable(path, array))
        for place, array in parts.items()
    }
    counts = (1 + max(t for t, _ in parts), 1 + max(c for _, c in parts))
    chunks = packed_chunks(one)

    def part(where: tuple[Any, ...]) -> np.ndarray:
        time, channel, *box = where
        if (time, channel) not in loaded:
            raise UserError(f"{path}: has no channel {channel} at time point {time}")
        return loaded[time, channel].part(tuple(box)).view(dtype)

    return Source(
        MadeArray((*counts, *size), dtype, part),
        "TCZYX",
        placed,
        warning=lambda: warn_of_absent(path, parts.values()),
        chunks=None if chunks is None else (1, 1, *chunks),
    )


def _scaled(file: Any, match: re.Match[str], sizes: Sizes) -> Place:
    """Return a setup's voxel size times its level's factors of ``resolutions`` (x, y, z).

    Where there is no ``.xml``, ``resolutions`` are sizes in micrometres if they are no whole ones.
    """
    table = file.get(f"{match['within']}s{match['channel']}/resolutions")
    unknown, level = Place.aligned({}), int(match["level"])
    known = sizes.get(int(match["channel"]))
    if table is None:
        return known if known and level == 0 else unknown
    if known is None:
        whole = np.all(table[0] == np.round(table[0]))
        return unknown if whole else Place.aligned(dict(zip("XYZ", table[level], strict=True)))
    if not known.tells_ratio:
        return unknown
    return replace(known, steps=known.steps * (table[level] / table[0]))


def _true_size(file: Any, array: Any) -> tuple[tuple[int, ...], Place]:
    """Return the size (z, y, x) of an Imaris array without what fills its last chunks, and place.

    Its origin is ``ExtMin``, the lower corner of the extents; they are in micrometres if no unit is
    named.
    """
    whole, own = file["DataSetInfo/Image"].attrs, array.parent.attrs
    size = {
        a: int(_text(own[f"ImageSize{a}"] if f"ImageSize{a}" in own else whole[a])) for a in "ZYX"
    }
    unit = _text(whole["Unit"]) if "Unit" in whole else "um"
    low, high = (
        np.array([number_in(_text(whole.get(f"{end}{k}", ""))) for k in range(3)])
        for end in ("ExtMin", "ExtMax")
    )
    edges = (high - low) / [size[a] for a in "XYZ"]
    known = Place.measured(dict(zip("XYZ", edges, strict=True)), dict.fromkeys("XYZ", unit))
    with np.errstate(divide="ignore", invalid="ignore"):
        return tuple(size.values()), known.moved(low / np.abs(edges))


def _text(attribute: Any) -> str:
    """Return what an attribute says, which Imaris keeps as an array of single letters."""
    letters = np.ravel(attribute).tolist()
    return "".join(n.decode("latin-1") if isinstance(n, bytes) else str(n) for n in letters)
