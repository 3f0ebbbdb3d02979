"""TIFF by tifffile: ImageJ's, OME's, Zeiss's LSM and others, big ones, folders of planes."""

import functools
import math
import operator
import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr

from utils.errors import UserError
from utils.stacks.place import Place, micrometres_per, number_in
from utils.stacks.stack import Contents, FileArray, StackLayout, library_errors, planes_of, whole_of

KEEPS = ("voxel size", "place")
TIFF_DAMAGE = re.compile("invalid (page|value) offset|corrupted|failed to reshape")
"""What tifffile logs where a file is cut before it goes on with the pages that are left."""
PLANES = (".tif", ".tiff")  # endings of the files in a folder of planes
_kind = operator.attrgetter("shape", "dtype", "axes", "photometric")
"""What pages of one stack have in common, however each is stored."""


def contents(path: Path) -> Contents:
    """Open the series of a file, its largest stack read unasked, or a folder of planes."""
    planes = _planes(path) if path.is_dir() else [path]
    path = path if len(planes) > 1 else planes[0]
    with ExitStack() as held:
        with library_errors(planes[0]):
            file = held.enter_context(tifffile.TiffFile(planes[0]))
            if file.ome_metadata and "BinaryOnly" in file.ome_metadata:
                file = held.enter_context(_whole(planes[0], file.ome_metadata))
        with library_errors(path) as messages:
            found = _joined(file)
            damage = [text for text in messages if TIFF_DAMAGE.search(text)]
            if damage or not found:
                raise UserError(f"{path}: cut or damaged ({[*damage, 'holds no image'][0]})")
            if len(planes) > 1 and not found[0].is_multifile:
                found = [_stacked(file, planes)]
            for page in (page for s in found if s.is_multifile for page in s.pages if page):
                held.callback(page.parent.close)
        close = held.pop_all().close

    opened = functools.partial(_array, path, file, found)
    if len(found) == 1:
        return Contents(path, {"": found[0]}, opened, close=close, flag="--series")
    arrays = {str(k): series for k, series in enumerate(found)}  # rather pages than a large preview
    largest = max(found, key=lambda s: (s.kind != "pages", s.size > s.keyframe.size, s.size))
    number = found.index(largest)
    said = f"only the largest of {len(found)} series is read"
    if largest.kind == "joined":
        said = "the pages of several series are read as one"
    said += f", number {number} of shape {largest.shape}"
    note = f"{said}; --series 0..{len(found) - 1} chooses, --list shows them"
    told = {"close": close, "flag": "--series", "note": note}
    return Contents(path, arrays, opened, [*arrays], [str(number)], **told)


def _whole(path: Path, xml: str) -> Any:
    """Return the OME-TIFF that a file is a part of, by the file beside it that ``xml`` names."""
    named = re.search(r'MetadataFile="([^"]+)"', xml)
    master = path.with_name(Path(named[1]).name if named else "metadata")
    if not master.is_file():
        raise UserError(f"{path}: is a part of an OME-TIFF that needs {master.name} beside it")
    if master.suffix.lower() in PLANES:
        return tifffile.TiffFile(master)
    return tifffile.TiffFile(path, omexml=master.read_text(encoding="utf-8"))


def _joined(file: Any) -> list[Any]:
    """Return the series, those of pages that are alike as one, as they were appended one by one.

    Slabs of equal depth, but for a thinner last one, may also be stacks of their own: these stay,
    and all their pages in one come last. Of two as deep as each other each is rather a stack.
    """
    alike: dict[Any, list[Any]] = {}
    for number, series in enumerate(file.series):
        page, plain = series.keyframe, series.kind in ("shaped", "generic", "uniform", "imagej")
        whole = len(series) * page.size == series.size and len(series.levels) == 1
        joinable = plain and whole and page.axes in ("YX", "YXS")
        alike.setdefault(_kind(page) if joinable else number, []).append(series)
    kept, joined = [], []
    for group in alike.values():
        depths = [len(series) for series in group]
        slabs = any(len(s) > 1 and s.kind != "generic" for s in group)
        if len(group) == 1 or slabs:
            kept += group
        if len(group) > 1 and (not slabs or {*depths[:-1]} == {max(depths)}):
            pages = sorted((p for s in group for p in s), key=lambda p: np.ravel(p.index).tolist())
            kind = "joined" if len(group) > 2 or depths[0] > depths[1] else "pages"
            (joined if slabs else kept).append(_series(file, pages, kind if slabs else ""))
    return kept + joined


def _series(file: Any, pages: list[Any], kind: str = "") -> Any:
    """Return pages of one kind as a series along z."""
    shape, axes = (len(pages), *pages[0].shape), f"Z{pages[0].axes}"
    options = {"dtype": pages[0].dtype, "parent": file, "multifile": True, "kind": kind}
    return tifffile.TiffPageSeries(pages, shape=shape, axes=axes, **options)


def _planes(path: Path) -> list[Path]:
    """Return the files of a folder of planes in the natural order of their names."""
    names = [p.name for p in path.iterdir() if p.suffix.lower() in PLANES and p.name[0] != "."]
    if not names:
        raise UserError(f"{path}: a folder without planes in TIFF ({', '.join(PLANES)})")
    return [path / name for name in tifffile.natural_sorted(names)]


def _stacked(file: Any, planes: list[Path]) -> Any:
    """Return files of one page each as a series; UserError where the images differ in kind."""
    pages = []
    for plane in planes:
        with library_errors(plane), tifffile.TiffFile(plane) as opened:
            pages.append(opened.pages[0] if pages else file.pages[0])
            if len(opened.pages) > 1:
                raise UserError(f"{plane}: holds {len(opened.pages)} pages, a plane has one")
        if _kind(pages[-1]) != _kind(pages[0]):
            ends = (pages[-1], pages[0])
            one, other = (f"{p.shape} {p.dtype} {p.photometric.name}" for p in ends)
            raise UserError(f"{plane}: is stored otherwise ({one}) than {planes[0].name} ({other})")
    return _series(file, pages)


def _array(path: Path, file: Any, found: list[Any], name: str) -> FileArray:
    """Return a series with what the file says of it; voxels in one piece are mapped."""
    series = found[int(name or 0)]
    page, axes, chunks = series.keyframe, series.axes, None
    with library_errors(path):
        place, offset = _place(file, series, int(name or 0)), series.dataoffset
        if offset is not None and not series.is_multifile:
            stored = np.dtype(series.dtype).newbyteorder(page.parent.byteorder)
            load = functools.partial(np.memmap, path, stored, "r", offset, series.shape)
        else:
            _check_segments(path, series)
            mode = 2 if len({page.hash for page in series}) > 1 else 0  # 2: each page as it is
            store = series.aszarr(level=0, chunkmode=mode)
            load = functools.cache(lambda: zarr.open_array(store, mode="r"))
            chunks = tuple(load().chunks)
    unknown = [k for k, a in enumerate(axes) if a in "QI" and series.shape[k] > 1]
    if len(unknown) == 1 and "Z" not in axes:
        axes = f"{axes[: unknown[0]]}Z{axes[unknown[0] + 1 :]}"
    array = FileArray.found(path, load, axes=axes, place=place, chunks=chunks)
    if path.is_dir():
        array = array.noted(f"{len(series)} planes in the order of their names")
    if page.photometric != tifffile.PHOTOMETRIC.MINISWHITE or page.bitspersample == 1:
        return array  # masks of a bit a voxel are so written by tifffile: 1 is True
    if array.dtype.kind not in "ub":
        raise UserError(f"{path}: {series.dtype} with white as zero; save it with black as zero")
    top = 2 ** int(page.bitspersample) - 1
    noted = array.noted("stored with white as zero: the grey values are inverted")
    return replace(noted, read=lambda where: (top - array.read(where)).astype(array.dtype))


def _check_segments(path: Path, series: Any) -> None:
    """Raise UserError if a page lies beyond the file's end: it would be read as zeros."""
    for page in series.pages:
        if page is None:
            raise UserError(f"{path}: lacks a page, or a neighbouring file that it refers to")
        ends = [a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > page.parent.filehandle.size:
            raise UserError(f"{path}: cut: its header speaks of more bytes than there are")


def _place(file: Any, series: Any, number: int) -> Place:
    """Return what the metadata say; the resolution of other TIFFs than ImageJ's is a printer's.

    OME-XML: https://docs.openmicroscopy.org/ome-model, Pixels and the stage positions of Plane.
    ImageJ: resolution tags in pixels per ``unit`` or ``yunit``, ``spacing`` between slices in
    ``zunit``, ``xorigin`` and so on the voxel that lies at 0 (``ij.measure.Calibration``).
    """
    if series.kind == "ome":
        pixels = _pixels(file, series, number)
        plane = pixels.find("{*}Plane")
        sizes = {a: number_in(pixels.get(f"PhysicalSize{a}")) for a in "XYZ"}
        place = Place.measured(sizes, {a: pixels.get(f"PhysicalSize{a}Unit", "um") for a in "XYZ"})
        if plane is None:
            return place
        ways = [number_in(plane.get(f"Position{a}")) for a in "XYZ"]
        lengths = [micrometres_per(plane.get(f"Position{a}Unit", "")) for a in "XYZ"]
        return place.moved(np.array(ways) * lengths / place.sizes / place.unit)
    if file.is_lsm:
        sizes = {a: (file.lsm_metadata or {}).get(f"VoxelSize{a}", math.nan) for a in "XYZ"}
        return Place.aligned(sizes, 1e6).in_units()
    found, tags = file.imagej_metadata, series.keyframe.tags
    if not found:
        return Place.aligned({})
    sizes = {"Z": number_in(found.get("spacing"))}
    for axis in "XY":
        pixels, length = tags[f"{axis}Resolution"].value if f"{axis}Resolution" in tags else (0, 0)
        sizes[axis] = length / pixels if pixels else math.nan
    units = {a: str(found.get(f"{a.lower()}unit", found.get("unit", ""))) for a in "XYZ"}
    place = Place.measured(sizes, units)
    if not place.has_unit and "Z" in place.guessed and "Z" in series.axes:
        place = Place.aligned({})  # pixels of a page without a scale
    return place.moved([-number_in(found.get(f"{a}origin")) for a in "xyz"])


def _pixels(file: Any, series: Any, number: int) -> Any:
    """Return OME's Pixels of a series: those that name its first page, as images may have none."""
    root = ElementTree.fromstring(file.ome_metadata)
    every = root.findall("{*}Image/{*}Pixels")
    page = next(page for page in series.pages if page)
    names = {page.parent.filename, root.get("UUID", "") if page.parent is file else ""}
    for pixels in every:
        for data in pixels.findall("{*}TiffData"):
            uuid = data.find("{*}UUID")
            here = uuid is None or {uuid.text, uuid.get("FileName")} & names
            if here and int(data.get("IFD", 0)) == page.index:
                return pixels
    return every[min(number, len(every) - 1)]


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write ImageJ's TIFF, or OME's if the name says so, page by page, without guessed sizes.

    A place is told as :func:`_place` reads it: ImageJ's origins, or OME's position of each plane.
    """
    flat, ome = len(layout.shape) == 2, ".ome.tif" in path.name.lower()
    place, planes = layout.placed.in_units(), [*layout.shape, 1][2]
    told: dict[str, Any] = {"axes": "ZYX"[flat:]}
    ways = zip("XYZ", place.way, place.sizes, strict=False)
    if ome:
        unit = "µm" if place.has_unit else "pixel"
        told |= {f"PhysicalSize{a}": size for a, size in place.known.items()}
        told |= {f"PhysicalSize{a}Unit": unit for a in place.known}
        if any(place.way) and place.has_unit:
            told["Plane"] = {f"Position{a}Unit": ["µm"] * planes for a in "XYZ"[: 3 - flat]}
            for a, way, size in ways:
                told["Plane"][f"Position{a}"] = [way + z * size * (a == "Z") for z in range(planes)]
    else:
        told |= {f"{a.lower()}origin": -way / n for a, way, n in ways if abs(way) > 1e-9 * n}
        told |= {"spacing": place.known["Z"]} if "Z" in place.known else {}
        told |= {"unit": "um"} if place.has_unit else {}
    kind = {"imagej": not ome, "ome": ome, "bigtiff": ome and layout.nbytes > 2**31}
    kind |= {"photometric": "minisblack", "resolutionunit": tifffile.RESUNIT.NONE}
    if {"X", "Y"} <= {*place.known}:
        kind["resolution"] = (1 / place.known["X"], 1 / place.known["Y"])
    pages = whole_of(slabs, layout).T if flat else planes_of(slabs)
    shape = layout.shape[::-1]
    tifffile.imwrite(path, pages, shape=shape, dtype=layout.dtype, metadata=told, **kind)
