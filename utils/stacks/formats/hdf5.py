"""HDF5 by h5py: any array of Fiji, ilastik and others, and this project's simulated volumes.

Of BigDataViewer's and Imaris's files each channel and time point is an array. BigDataViewer:
https://imagej.net/plugins/bdv, setups are channels; it keeps uint16 in arrays that are called
int16. Imaris: https://imaris.oxinst.com (its file format 5.5), arrays that are longer than the
stack, and attributes as arrays of single letters.
"""

import contextlib
import importlib
import json
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np

from utils.errors import UserError
from utils.stacks.axes import told_axes
from utils.stacks.place import Place, micrometres_per, number_in
from utils.stacks.stack import Contents, FileArray, StackLayout, fill, library_errors
from utils.storage import VolumeFile

KEEPS = ("voxel size",)
BDV = re.compile(r"(?P<within>(?:.+/)?)t(?P<time>\d{5,})/s(?P<channel>\d{2,})/(?P<level>\d+)/cells")
IMARIS = re.compile(
    r"(?P<within>)DataSet/ResolutionLevel (?P<level>\d+)/TimePoint (?P<time>\d+)/"
    r"Channel (?P<channel>\d+)/Data"
)


def contents(path: Path) -> Contents:
    """Open a file and look through it, along its links too; its arrays have two axes or more.

    Read unasked is what its program keeps as one stack in several of them: the images of a file of
    simulated volumes, and what :func:`_split_stacks` knows.
    """
    path, sizes = _file_of(path)
    every, first, lost = {}, {}, []
    with ExitStack() as held:
        with library_errors(path):
            file = held.enter_context(h5py.File(path, "r"))
            for name, item in _walk(file, lost):
                if isinstance(item, h5py.Dataset) and item.ndim > 1:
                    every[name] = _beside(item)
                    first.setdefault(every[name], name)
        volumes = held.enter_context(VolumeFile(path))
        if "vol_data" in every and volumes.complete:  # edges of its cube have no micrometres
            told = {"shape": (len(volumes), *volumes.shape), "dtype": np.dtype(np.float32)}
            told["read"] = lambda where: volumes.read_image(where[0], where[1:])
            whole = {"": FileArray(path, axes="NXYZ", **told)}
        else:
            whole = _split_stacks(path, file, {n: array for array, n in first.items()}, sizes)
        close = held.pop_all().close

    def opened(name: str) -> FileArray:
        if name in whole:
            return whole[name]
        alone = _split_stacks(path, file, {name: every[name]}, sizes)
        return alone[""] if alone else _array(path, every[name])

    note = f"its links lead nowhere: {', '.join(lost[:4])}" if lost else ""
    listed = [*whole] or [*first.values()]
    return Contents(path, every | whole, opened, listed, listed, close=close, note=note)


def _walk(file: Any, lost: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield names and what they stand for, own ones first; links to nowhere go to ``lost``."""
    own, linked, entered = deque([("", file)]), deque(), set()
    while own or linked:
        prefix, item = (own or linked).popleft()
        yield prefix, item
        if not isinstance(item, h5py.Group) or item in entered:
            continue
        entered.add(item)
        for child in item:
            name, link = f"{prefix}/{child}".lstrip("/"), item.get(child, getlink=True)
            try:
                (own if isinstance(link, h5py.HardLink) else linked).append((name, item[child]))
            except (KeyError, OSError, RuntimeError):  # h5py's own for a link that leads nowhere
                there = f" of {link.filename}" if isinstance(link, h5py.ExternalLink) else ""
                lost.append(f"{name} (to {getattr(link, 'path', 'nothing')}{there})")


def _array(path: Path, dataset: Any) -> FileArray:
    """Return a dataset with what its attributes say."""
    parts = _readable(path, [dataset])
    with library_errors(path):
        tags = json.loads(dataset.attrs.get("axistags", '{"axes": []}'))["axes"]  # vigra, ilastik
        scales = [next(iter(dimension.keys()), "") for dimension in dataset.dims]  # netCDF
        axes = told_axes(dataset.attrs, [[tag["key"] for tag in tags], scales], dataset.ndim)
        told = np.ravel(dataset.attrs.get("element_size_um", ())).tolist()
        sizes = [number_in(size) for size in told]
        spatial = "".join(a for a in axes or "ZYX" if a in "XYZ")[-dataset.ndim :]
        known = zip(spatial, sizes, strict=True) if len(sizes) == len(spatial) else ()
        place = Place.aligned(dict(known))
    array = FileArray.found(path, lambda: dataset, axes=axes, place=place, **parts)
    unread = told and not np.isfinite(sizes).any()
    return array.noted(f"its element_size_um is not read: {str(told)[:80]}" if unread else None)


def _beside(array: Any) -> Any:
    """Return a dataset that finds the files of its bytes beside its own, not where we started."""
    if array.external:
        name, shape, dtype, file = array.name, array.shape, array.dtype, array.file
        array.id.close()  # one that is open keeps its way of looking
        array = file.require_dataset(name, shape, dtype, efile_prefix="${ORIGIN}")
    return array


def _readable(path: Path, arrays: Sequence[Any]) -> dict[str, Any]:
    """Return chunks and warning of datasets alike; UserError if a filter or bytes are not there."""
    with library_errors(path):
        made = [array.id.get_create_plist() for array in arrays]
        for code, name in {m.get_filter(k)[::3] for m in made for k in range(m.get_nfilters())}:
            if not h5py.h5z.filter_avail(code):
                with contextlib.suppress(ImportError):
                    importlib.import_module("hdf5plugin")  # which makes its filters available
            if not h5py.h5z.filter_avail(code):
                called = name.decode("utf-8", "replace").split(";")[0] or "without a name"
                packed = f"{arrays[0].name} is packed by a filter ({called}, number {code})"
                needs = "which needs the package hdf5plugin: pip install hdf5plugin"
                raise UserError(f"{path}: {packed}, {needs}")
        for array in arrays:
            needed = array.nbytes
            for name, first, size in array.external or ():
                file, wanted = Path(array.file.filename).parent / name, min(size, needed)
                needed -= wanted
                if not file.exists() or file.stat().st_size < first + wanted:
                    lacks = f"stand in {file}, which is {'cut' if file.exists() else 'absent'}"
                    raise UserError(f"{path}: the voxels of {array.name} {lacks}")
        chunks = arrays[0].chunks if made[0].get_nfilters() else None
    return {"chunks": chunks, "warning": lambda: _warn_of_absent(path, arrays)}


def _warn_of_absent(path: Path, arrays: Sequence[Any]) -> str | None:
    """Say what of datasets is read as the fill value for want of chunks, files or datasets."""
    with library_errors(path):
        found = [loss for array in arrays for loss in _losses(array)]
    if not found:
        return None
    more = f", and {len(found) - 3} more like it" if len(found) > 3 else ""
    reason = "right if nothing was to be stored there, wrong if a file was cut or left behind"
    return f"{path}: {'; '.join(found[:3])}{more}: read as the fill value, {reason}"


def _losses(array: Any) -> Iterator[str]:
    """Yield what is not there of a dataset, a line each."""
    name = array.name.strip("/")
    if array.is_virtual:
        yield from _lost_sources(array, name)
    elif array.chunks:
        total = math.prod(-(-n // edge) for n, edge in zip(array.shape, array.chunks, strict=True))
        absent = total - array.id.get_num_chunks()
        if absent > 0:
            yield f"{absent} of the {total} chunks of {name} were never written"
    elif not array.external and array.id.get_storage_size() == 0:  # of compact ones it is not 0
        yield f"nothing of {name} was ever written"


def _lost_sources(array: Any, name: str) -> Iterator[str]:
    """Yield what a virtual dataset refers to without its being there, or refers to nothing."""
    own, mapped = Path(array.file.filename), 0
    for source in array.virtual_sources():
        if "%" in source.file_name + source.dset_name:  # a pattern of files, read as far as they go
            mapped = array.size
            continue
        mapped += source.vspace.get_select_npoints()
        places = (own.parent / source.file_name, Path(source.file_name))
        file = own if source.file_name == "." else next(filter(Path.is_file, places), None)
        if file is None:
            yield f"a part of {name} stands in {source.file_name}, which is absent"
            continue
        with h5py.File(file, "r") as opened:
            if source.dset_name in opened:
                yield from _losses(opened[source.dset_name])
            else:
                yield f"a part of {name} is {source.dset_name} of {file.name}, which lacks it"
    if mapped < array.size:
        yield f"{array.size - mapped:,} of the {array.size:,} voxels of {name} stand nowhere"


def _file_of(path: Path) -> tuple[Path, dict[int, Place]]:
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


def _split_stacks(
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
        stacks[key] = _joined(path, file, taken, sizes)
    return stacks


def _joined(path: Path, file: Any, taken: Mapping[Any, Any], sizes: dict[int, Place]) -> FileArray:
    """Return arrays, and what their names say, by place along T and C as one (T, C, Z, Y, X)."""
    parts = {place: array for place, (array, _) in taken.items()}
    one, match = next(iter(taken.values()))
    told = _readable(path, [*parts.values()])
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


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write an array ``data`` with Fiji's attributes."""
    axes = layout.axes
    with h5py.File(path, "w") as file:
        array = file.create_dataset("data", **layout.stored(axes), compression=1)
        array.attrs["axes"] = axes
        if layout.spacing:
            array.attrs["element_size_um"] = [layout.spacing["XYZ".index(a)] for a in axes]
        fill(array, axes, slabs)
