"""TIFF by tifffile: ImageJ's, OME's, Zeiss's LSM and others, big ones, folders of planes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.place import Place
from utils.stacks.stack import (
    Contents,
    FileArray,
    MadeArray,
    Source,
    StackLayout,
    closed_if_it_fails,
    library_errors,
    planes_of,
    quiet,
)
from utils.stacks.units import micrometres_per, number_in

TIFF_DAMAGE = re.compile("invalid (page|value) offset|corrupted|failed to reshape")
"""What tifffile logs where a file is cut before it goes on with the pages that are left."""
PLANES = (".tif", ".tiff")
"""Endings of the files in a folder of planes."""


def contents(path: Path) -> Contents:
    """Open the series of a file, its largest stack read unasked, or a folder of planes."""
    planes = _planes(path) if path.is_dir() else [path]
    path = path if len(planes) > 1 else planes[0]
    file, found = _open(path, planes)
    with closed_if_it_fails(file), library_errors(path):
        several = [series for series in found if series.is_multifile]
        files = {file, *(page.parent for series in several for page in series.pages if page)}

    def close() -> None:
        for each in files:
            each.close()

    numbered = {str(k): series for k, series in enumerate(found)}
    rank = {k: (s.size > s.keyframe.size, s.size, -int(k)) for k, s in numbered.items()}
    largest = max(rank, key=lambda k: rank[k])  # of several pages rather than a large preview
    what = f"only the largest of {len(found)} series is read"
    if numbered[largest].kind == "joined":
        what = "the pages of several series are read as one"
    said = (
        f"{what}, number {largest} of shape {numbered[largest].shape}; "
        f"--series 0..{len(found) - 1} chooses, --list shows them"
    )
    return Contents(
        path,
        numbered if len(found) > 1 else {"": found[0]},
        lambda name: {k: series for k, series in numbered.items() if k == (name or largest)},
        lambda name: _source(path, file, found, int(name or largest)),
        close,
        "--series",
        said if len(found) > 1 else "",
    )


def _open(path: Path, planes: list[Path]) -> tuple[Any, list[Any]]:
    """Return the library's file and its series: appended single pages, and planes, are one."""
    import tifffile

    with library_errors(planes[0]):
        file = tifffile.TiffFile(planes[0])
    with closed_if_it_fails(file), library_errors(path):
        if file.ome_metadata and "BinaryOnly" in file.ome_metadata:
            file.close()
            file = _whole(planes[0], file.ome_metadata)
        with quiet("tifffile") as messages:
            found = _joined(file, list(file.series))
        damage = [text for text in messages if TIFF_DAMAGE.search(text)]
        if damage or not found:
            raise UserError(f"{path}: cut or damaged ({[*damage, 'holds no image'][0]})")
        if len(planes) > 1 and not found[0].is_multifile:
            found = [_stacked(path, file, planes)]
    return file, found


def _whole(path: Path, xml: str) -> Any:
    """Return the OME-TIFF that a file is a part of, by the file beside it that ``xml`` names."""
    import tifffile

    named = re.search(r'MetadataFile="([^"]+)"', xml)
    master = path.with_name(Path(named[1]).name if named else "metadata")
    if not master.is_file():
        raise UserError(f"{path}: is a part of an OME-TIFF that needs {master.name} beside it")
    if master.suffix.lower() in PLANES:
        return tifffile.TiffFile(master)
    return tifffile.TiffFile(path, omexml=master.read_text(encoding="utf-8"))


def _joined(file: Any, found: list[Any]) -> list[Any]:
    """Return the series, those of pages that are alike as one, as they were appended one by one.

    Slabs of equal depth, but for a thinner last one, may also be stacks of their own: these stay,
    and all their pages in one come last.
    """
    alike: dict[Any, list[Any]] = {}
    for number, series in enumerate(found):
        page, plain = series.keyframe, series.kind in ("shaped", "generic", "uniform", "imagej")
        whole = len(series) * page.size == series.size and len(series.levels) == 1
        joinable = plain and whole and page.axes in ("YX", "YXS")
        alike.setdefault(_kind(page) if joinable else number, []).append(series)
    kept, joined = [], []
    for group in alike.values():
        depths = [len(series) for series in group]
        slabs = any(n > 1 and s.kind != "generic" for n, s in zip(depths, group, strict=True))
        if len(group) == 1 or slabs:
            kept += group
        if len(group) > 1 and (not slabs or {*depths[:-1]} == {max(depths)}):
            pages = sorted((p for s in group for p in s), key=lambda p: np.ravel(p.index).tolist())
            (joined if slabs else kept).append(_series(file, pages, "joined" if slabs else ""))
    return kept + joined


def _kind(page: Any) -> tuple[Any, ...]:
    """Return what pages of one stack have in common, however each is stored."""
    return page.shape, page.dtype, page.axes, page.photometric


def _series(file: Any, pages: list[Any], kind: str = "") -> Any:
    """Return pages of one kind as a series along z."""
    import tifffile

    shape, axes = (len(pages), *pages[0].shape), f"Z{pages[0].axes}"
    options = {"dtype": pages[0].dtype, "parent": file, "multifile": True, "kind": kind}
    return tifffile.TiffPageSeries(pages, shape=shape, axes=axes, **options)


def _planes(path: Path) -> list[Path]:
    """Return the files of a folder of planes in the natural order of their names."""
    import tifffile

    names = [p.name for p in path.iterdir() if p.suffix.lower() in PLANES and p.name[0] != "."]
    if not names:
        raise UserError(f"{path}: a folder without planes in TIFF ({', '.join(PLANES)})")
    return [path / name for name in tifffile.natural_sorted(names)]


def _stacked(path: Path, file: Any, planes: list[Path]) -> Any:
    """Return files of one page each as a series; UserError where the images differ in kind."""
    import tifffile

    pages = []
    for plane in planes:
        with library_errors(plane), tifffile.TiffFile(plane) as opened:
            pages.append(opened.pages[0] if pages else file.pages[0])
            if len(opened.pages) > 1:
                raise UserError(f"{plane}: holds {len(opened.pages)} pages, a plane has one")
    for plane, page in zip(planes, pages, strict=True):
        if _kind(page) != _kind(pages[0]):
            one, other = (f"{p.shape} {p.dtype} {p.photometric.name}" for p in (page, pages[0]))
            raise UserError(f"{plane}: is stored otherwise ({one}) than {planes[0].name} ({other})")
    return _series(file, pages)


def _source(path: Path, file: Any, found: list[Any], number: int) -> Source:
    """Return a series as the rest of the program reads it; voxels in one piece are mapped."""
    import tifffile
    import zarr

    series, page = found[number], found[number].keyframe
    with library_errors(path):
        place, dtype, offset = _place(file, series, number), series.dtype, series.dataoffset
        in_one_piece = offset is not None and not series.is_multifile
        if not in_one_piece:
            _check_segments(path, series)
        mixed = not in_one_piece and len({page.hash for page in series}) > 1
    stored = np.dtype(dtype).newbyteorder(page.parent.byteorder)
    if in_one_piece:
        load = functools.partial(np.memmap, path, stored, "r", offset, series.shape)
    else:
        load = functools.cache(
            lambda: zarr.open_array(series.aszarr(level=0, chunkmode=2 * mixed), mode="r")
        )
    array: FileArray | MadeArray = (voxels := FileArray.found(path, load))
    chunks = None if in_one_piece else tuple(load().chunks)
    notes = (f"{len(series)} planes in the order of their names",) if path.is_dir() else ()
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        if array.dtype.kind not in "ub":
            raise UserError(f"{path}: {dtype} with white as zero; save it with black as zero")
        notes = (*notes, "stored with white as zero: the grey values are inverted")
        top, kind = 2 ** int(page.bitspersample) - 1, voxels.dtype
        array = MadeArray(voxels.shape, kind, lambda where: (top - voxels.part(where)).astype(kind))
    axes = series.axes
    unknown = [k for k, a in enumerate(axes) if a in "QI" and series.shape[k] > 1]
    if len(unknown) == 1 and "Z" not in axes:
        axes = f"{axes[: unknown[0]]}Z{axes[unknown[0] + 1 :]}"
    return Source(array, axes, place, notes=notes, chunks=chunks)


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
        sizes = {a: number_in(str(pixels.get(f"PhysicalSize{a}"))) for a in "XYZ"}
        units = {a: str(pixels.get(f"PhysicalSize{a}Unit", "um")) for a in "XYZ"}
        place, plane = Place.measured(sizes, units), _list(pixels.get("Plane", {}))[0]
        ways = [number_in(str(plane.get(f"Position{a}"))) for a in "XYZ"]
        lengths = [micrometres_per(str(plane.get(f"Position{a}Unit"))) for a in "XYZ"]
        return place.moved(np.array(ways) * lengths / place.sizes / place.unit)
    if file.is_lsm:
        found = file.lsm_metadata or {}
        sizes = {a: number_in(str(found.get(f"VoxelSize{a}"))) for a in "XYZ"}
        return Place.measured(sizes, dict.fromkeys("XYZ", "m"))
    found, tags = file.imagej_metadata, series.keyframe.tags
    if not found:
        return Place.aligned({})
    sizes = {"Z": number_in(str(found.get("spacing")))}
    for axis in "XY":
        pixels, length = tags[f"{axis}Resolution"].value if f"{axis}Resolution" in tags else (0, 0)
        sizes[axis] = length / pixels if pixels else math.nan
    units = {a: str(found.get(f"{a.lower()}unit", found.get("unit", ""))) for a in "XYZ"}
    place = Place.measured(sizes, units)
    if not math.isfinite(place.unit) and "Z" in place.guessed and "Z" in series.axes:
        place = Place.aligned({})  # pixels of a page without a scale
    return place.moved([-number_in(str(found.get(f"{a}origin"))) for a in "xyz"])


def _pixels(file: Any, series: Any, number: int) -> dict[str, Any]:
    """Return OME's Pixels of a series: those that name its first page, as images may have none."""
    import tifffile

    ome = tifffile.xml2dict(file.ome_metadata)["OME"]
    every = [image["Pixels"] for image in _list(ome["Image"]) if "Pixels" in image]
    page = next(page for page in series.pages if page)
    names = {page.parent.filename, *([ome.get("UUID")] if page.parent is file else [])}
    for pixels in every:
        for data in filter(None, _list(pixels.get("TiffData"))):
            uuid = data.get("UUID", page.parent.filename)
            named = {*uuid.values()} if isinstance(uuid, dict) else {uuid}
            if names & named and data.get("IFD", 0) == page.index:
                return dict(pixels)
    return dict(every[min(number, len(every) - 1)])


def _list(entry: Any) -> list[Any]:
    """Return an element of OME-XML as a list, of one where there is one."""
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write ImageJ's TIFF, or OME's if the name says so, page by page.

    Sizes that are guessed are left out; a place is written as :func:`_place` reads it.
    """
    import tifffile

    flat = len(layout.shape) == 2
    ome = ".ome.tif" in path.name.lower()
    place = layout.placed.in_units(1.0)
    sizes = place.known if place.tells_ratio else {}
    metadata = {"axes": "YX" if flat else "ZYX", **(_ome if ome else _imagej)(place, layout)}
    resolution = (1 / sizes["X"], 1 / sizes["Y"]) if {"X", "Y"} <= {*sizes} else None
    tifffile.imwrite(
        path,
        np.concatenate(list(slabs), axis=-1).T if flat else planes_of(slabs),
        shape=layout.shape[::-1],
        dtype=layout.dtype,
        imagej=not ome,
        ome=ome,
        bigtiff=ome and layout.nbytes > 2**31,
        photometric="minisblack",
        resolution=resolution,
        resolutionunit=tifffile.RESUNIT.NONE,
        metadata=metadata,
    )


def _imagej(place: Place, layout: StackLayout) -> dict[str, Any]:
    """Return ImageJ's unit and spacing, and its origins as far as they are not 0."""
    zeros = {a: -w / n for a, w, n in zip("xyz", place.way, place.sizes, strict=False)}
    fields: dict[str, Any] = {f"{a}origin": n for a, n in zeros.items() if abs(n) > 1e-9}
    if math.isfinite(place.unit):
        fields["unit"] = "um"
    if place.tells_ratio and "Z" in place.known:
        fields["spacing"] = place.known["Z"]
    return fields


def _ome(place: Place, layout: StackLayout) -> dict[str, Any]:
    """Return OME's sizes, and the position of each plane if the first is not at 0."""
    has_unit, fields, planes = math.isfinite(place.unit), {}, [*layout.shape, 1][2]
    for axis, size in place.known.items() if place.tells_ratio else ():
        unit = "µm" if has_unit else "pixel"
        fields |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    if any(place.way) and has_unit:
        positions = fields["Plane"] = {}
        for axis, start, size in zip("XYZ", place.way, place.sizes, strict=False):
            ways = [start + z * size * (axis == "Z") for z in range(planes)]
            positions |= {f"Position{axis}": ways, f"Position{axis}Unit": ["µm"] * planes}
    return fields
