"""Stacks in HDF5 of which each channel and time point is an array: BigDataViewer's and Imaris's.

BigDataViewer: https://imagej.net/plugins/bdv, setups are channels; it keeps uint16 in arrays that
are called int16. Imaris: https://imaris.oxinst.com (its file format 5.5), arrays that are longer
than the stack, and attributes as arrays of single letters.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from utils.errors import UserError
from utils.stacks.formats.hdf5_parts import readable
from utils.stacks.place import Place, micrometres_per, number_in
from utils.stacks.stack import FileArray, library_errors

BDV = re.compile(r"(?P<within>(?:.+/)?)t(?P<time>\d{5,})/s(?P<channel>\d{2,})/(?P<level>\d+)/cells")
IMARIS = re.compile(
    r"(?P<within>)DataSet/ResolutionLevel (?P<level>\d+)/TimePoint (?P<time>\d+)/"
    r"Channel (?P<channel>\d+)/Data"
)


def file_of(path: Path) -> tuple[Path, dict[int, Place]]:
    """Return the HDF5 file that BigDataViewer's ``.xml`` names, and the voxel sizes of its setups.

    The ``.xml`` is the path, or has its name. UserError if it names no file that is there.
    """
    described = path.with_suffix(".xml")
    if path != described and not (described.is_file() and b"<SpimData" in described.read_bytes()):
        return path, {}
    with library_errors(described):
        root = ElementTree.parse(described).getroot()
        kinds = [loader.get("format", "") for loader in root.iter("ImageLoader")]
        named = root.findtext(".//ImageLoader/hdf5")
        sizes = {}
        for setup in root.iter("ViewSetup"):
            numbers = map(number_in, setup.findtext("voxelSize/size", "").split())
            unit = micrometres_per(setup.findtext("voxelSize/unit", ""))
            known = Place.aligned(dict(zip("XYZ", numbers, strict=False)), unit)
            sizes[int(setup.findtext("id", ""))] = known.in_units()
    if path != described:
        return path, sizes
    if named is None:
        said = f"its images are kept as {kinds[0]}" if any(kinds) else "it names no images"
        raise UserError(f"{path}: {said}; of BigDataViewer's XML those with HDF5 are read")
    file = path.parent / named.strip()
    if not file.is_file():
        raise UserError(f"{path}: names the HDF5 file {file}, which is absent")
    return file, sizes


def split_stacks(
    path: Path, file: Any, arrays: Mapping[str, Any], sizes: dict[int, Place]
) -> dict[str, FileArray]:
    """Return the stacks at full resolution by the name for ``--key``, empty for the only one.

    One array alone is taken at any resolution. None of arrays of other programs, of several groups,
    or of time points that differ.
    """
    full = {}
    for name, array in arrays.items():
        match = BDV.fullmatch(name) or IMARIS.fullmatch(name)
        if match and (int(match["level"]) == 0 or len(arrays) == 1):
            full[match["within"], int(match["time"]), int(match["channel"])] = array, match
    times, channels = (sorted({place[k] for place in full}) for k in (1, 2))
    with library_errors(path):
        kinds = {
            (within, channel, array.shape, array.dtype, str(sizes.get(channel)))
            for (within, _, channel), (array, _) in full.items()
        }
    if len({kind[0] for kind in kinds}) > 1 or len(kinds) > len(channels):
        return {}
    alike = len({kind[2:] for kind in kinds}) == 1
    groups = {"": channels} if alike else {f"s{channel:02d}": [channel] for channel in channels}
    stacks = {}
    for key, group in groups.items():
        taken = {(times.index(t), group.index(c)): full[w, t, c] for w, t, c in full if c in group}
        stacks[key] = _stack(path, file, taken, sizes)
    return stacks


def _stack(path: Path, file: Any, taken: Mapping[Any, Any], sizes: dict[int, Place]) -> FileArray:
    """Return arrays, and what their names say, by place along T and C as one (T, C, Z, Y, X)."""
    parts = {place: array for place, (array, _) in taken.items()}
    one, match = next(iter(taken.values()))
    told = readable(path, [*parts.values()])
    with library_errors(path):
        dtype, size = one.dtype, one.shape
        if match.re is BDV:
            place = _scaled(file, match, sizes)
            dtype = np.dtype(f"{dtype.byteorder}u2") if dtype == np.int16 else dtype
        else:
            size, place = _true_size(file, one)
    if len(size) != len(one.shape) or any(a > b for a, b in zip(size, one.shape, strict=True)):
        raise UserError(f"{path}: damaged: {one.name} of {one.shape} is smaller than {size}")

    def part(where: tuple[Any, ...]) -> np.ndarray:
        if where[:2] not in parts:
            raise UserError(f"{path}: has no channel {where[1]} at time point {where[0]}")
        return parts[where[:2]][where[2:]].view(dtype)

    told["chunks"] = told["chunks"] and (1, 1, *told["chunks"])
    shape = (*(max(places) + 1 for places in zip(*parts, strict=True)), *size)
    return FileArray(path, shape, dtype, part, axes="TCZYX", place=place, **told)


def _scaled(file: Any, match: re.Match[str], sizes: dict[int, Place]) -> Place:
    """Return a setup's size times its level's factors; these may be sizes without an ``.xml``."""
    table = file.get(f"{match['within']}s{match['channel']}/resolutions")
    level, known = int(match["level"]), sizes.get(int(match["channel"]))
    if table is None:
        return known if known and level == 0 else Place.aligned({})
    if known is None:
        whole = np.all(table[0] == np.round(table[0]))
        return Place.aligned({} if whole else dict(zip("XYZ", table[level], strict=True)))
    return replace(known, steps=known.steps * (table[level] / table[0] if known.tells_ratio else 1))


def _true_size(file: Any, array: Any) -> tuple[tuple[int, ...], Place]:
    """Return an Imaris array's true size (z, y, x), and place: ``ExtMin`` is its lower corner."""
    whole, own = file["DataSetInfo/Image"].attrs, array.parent.attrs
    size = [int(_text(own.get(f"ImageSize{a}", whole.get(a)))) for a in "XYZ"]
    unit = micrometres_per(_text(whole.get("Unit", "um")))
    ends = [[_text(whole.get(f"{end}{k}", "")) for k in range(3)] for end in ("ExtMin", "ExtMax")]
    low, high = (np.array(list(map(number_in, end))) for end in ends)
    edges = (high - low) / size
    known = Place.aligned(dict(zip("XYZ", edges, strict=True)), unit).in_units()
    with np.errstate(divide="ignore", invalid="ignore"):
        return tuple(size[::-1]), known.moved(low / np.abs(edges))


def _text(attribute: Any) -> str:
    """Return what an attribute says, which Imaris keeps as an array of single letters."""
    letters = np.ravel(attribute).tolist()
    return "".join(n.decode("latin-1") if isinstance(n, bytes) else str(n) for n in letters)
