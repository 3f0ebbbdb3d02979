"""TIFF by tifffile: ImageJ's, OME's, Zeiss's LSM and others, big ones, folders of planes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.place import Place
from utils.stacks.stack import (
    Entry,
    FileArray,
    Source,
    StackLayout,
    library_errors,
    planes_of,
    quiet,
)
from utils.stacks.units import micrometres_per

TIFF_DAMAGE = re.compile("invalid (page|value) offset|corrupted|failed to reshape")
"""What tifffile logs where a file is cut before it goes on with the pages that are left."""
PLANES = (".tif", ".tiff")
"""Endings of the files in a folder of planes."""


def read(path: Path, key: str | None) -> Source:
    """Open a series of a file, the largest if none is named, or a folder of planes.

    Voxels that stand in one piece are mapped. ``key`` is the number of the series.
    """
    if path.is_dir():
        if key is not None:
            raise UserError(f"{path}: a folder of planes has no series; --series {key} is for TIFF")
        return _read_planes(path)
    file, found = _open(path)
    try:
        number = _chosen(path, found, key)
        series = found[number]
        notes = []
        if key is None and len(found) > 1:
            notes.append(
                f"only the largest of {len(found)} series is read, number {number} of shape "
                f"{series.shape}; --series 0..{len(found) - 1} chooses, and --list shows them"
            )
        return _source(path, file, series, number, notes)
    except BaseException:
        file.close()
        raise


def entries(path: Path) -> list[Entry]:
    """Return an entry for each series of a file."""
    if path.is_dir():
        return [Entry.of(_read_planes(path))]
    file, found = _open(path)
    try:
        chosen = _chosen(path, found, None)
        listed = []
        for number, series in enumerate(found):
            with library_errors(path):
                place = _place(file, series, number)
            spacing = _micrometres(place)
            facts = (series.shape, _axes(series.axes), np.dtype(series.dtype), spacing)
            listed.append(Entry(str(number), *facts, number == chosen))
        return listed
    finally:
        file.close()


def _open(path: Path) -> tuple[Any, list[Any]]:
    """Return the library's file and its series, single pages of one kind joined to one."""
    import tifffile

    with library_errors(path):
        file = tifffile.TiffFile(path)
    try:
        with library_errors(path):
            if file.ome_metadata and "BinaryOnly" in file.ome_metadata:
                xml = _master(path, file.ome_metadata)
                file.close()
                file = tifffile.TiffFile(path, omexml=xml)
            with quiet("tifffile") as messages:
                found = _joined(file, list(file.series))
            damage = [text for text in messages if TIFF_DAMAGE.search(text)]
            if damage or not found:
                raise UserError(f"{path}: cut or damaged ({[*damage, 'holds no image'][0]})")
    except BaseException:
        file.close()
        raise
    return file, found


def _master(path: Path, xml: str) -> str:
    """Return the metadata of the file that a part of an OME-TIFF refers to; it lies beside it."""
    import tifffile

    named = re.search(r'MetadataFile="([^"]+)"', xml)
    master = path.with_name(Path(named[1]).name if named else "")
    if not named or not master.is_file():
        raise UserError(f"{path}: is a part of an OME-TIFF that needs {master.name} beside it")
    if master.suffix.lower() in PLANES:
        with tifffile.TiffFile(master) as file:
            return str(file.ome_metadata)
    return master.read_text(encoding="utf-8")


def _joined(file: Any, found: list[Any]) -> list[Any]:
    """Return the series, those of single pages that are stored alike as one.

    A program that appends page by page leaves each as a series of its own.
    """
    import tifffile

    alike: dict[Any, list[Any]] = {}
    for number, series in enumerate(found):
        single = series.axes in ("YX", "YXS") and len(series.pages) == 1 and series.kind != "ome"
        alike.setdefault(series.pages[0].hash if single else number, []).append(series)
    return [
        group[0]
        if len(group) == 1
        else tifffile.TiffPageSeries(
            [series.pages[0] for series in group],
            shape=(len(group), *group[0].shape),
            dtype=group[0].dtype,
            axes=f"Z{group[0].axes}",
            parent=file,
            kind=group[0].kind,
        )
        for group in alike.values()
    ]


def _chosen(path: Path, found: list[Any], key: str | None) -> int:
    """Return the number of the series that is asked for, or of the first of the largest."""
    if key is None:
        return max(range(len(found)), key=lambda k: (math.prod(found[k].shape), -k))
    if int(key) not in range(len(found)):
        raise UserError(f"{path}: --series {key}: its series are 0..{len(found) - 1}")
    return int(key)


def _source(path: Path, file: Any, series: Any, number: int, notes: list[str]) -> Source:
    """Return a series as the rest of the program reads it."""
    import tifffile
    import zarr

    with library_errors(path):
        place, dtype = _place(file, series, number), np.dtype(series.dtype)
        in_one_piece = series.dataoffset is not None and not series.is_multifile
        if not in_one_piece:
            _check_segments(path, series)
        inverted = series.keyframe.photometric == tifffile.PHOTOMETRIC.MINISWHITE
    if in_one_piece:
        order, offset = series.keyframe.parent.byteorder, series.dataoffset
        stored = dtype.newbyteorder(order)
        load = lambda: np.memmap(path, stored, "r", offset, series.shape)  # noqa: E731
    else:
        load = functools.cache(lambda: zarr.open_array(series.aszarr(level=0), mode="r"))
    array = FileArray.found(path, load)
    chunks = None if in_one_piece else tuple(load().chunks)
    if inverted:
        notes = [*notes, "is stored with white as zero, so its grey values are inverted"]
        if dtype.kind not in "ub":
            raise UserError(f"{path}: {dtype} with white as zero; save it with black as zero")
        top = 1 if dtype.kind == "b" else 2 ** min(series.keyframe.bitspersample, 16) - 1
        array = _Inverted(array, top)
    facts = {"place": place, "close": file.close, "notes": tuple(notes), "chunks": chunks}
    return Source(array, _axes(series.axes), _micrometres(place), **facts)


class _Inverted:
    """An array whose grey values are those of another, turned round."""

    def __init__(self, array: FileArray, top: int) -> None:
        self.shape, self.dtype, self._array, self._top = array.shape, array.dtype, array, top

    def part(self, where: tuple[int | slice, ...]) -> np.ndarray:
        return (self._top - self._array.part(where)).astype(self.dtype)


def _read_planes(path: Path) -> Source:
    """Return the planes of a folder, in the natural order of their names, as one stack."""
    import tifffile

    names = [p.name for p in path.iterdir() if p.suffix.lower() in PLANES and p.name[0] != "."]
    files = [path / name for name in tifffile.natural_sorted(names)]
    if not files:
        raise UserError(f"{path}: a folder without planes in TIFF (.tif, .tiff)")
    kinds = []
    for file in files:
        with library_errors(file), tifffile.TiffFile(file) as opened:
            page, count = opened.pages[0], len(opened.pages)
            if file == files[0]:
                if opened.is_ome and len(opened.series[0].pages) > count:
                    return read(file, None)  # it says itself in what order they stand
                place, axes = _place(opened, opened.series[0], 0), page.axes
            kinds.append((count, page.shape, page.dtype))
    for file, kind in zip(files, kinds, strict=True):
        if kind[0] != 1:
            raise UserError(f"{file}: holds {kind[0]} planes, where a folder has one a file")
        if kind != kinds[0]:
            one, other = (f"{shape} {dtype}" for _, shape, dtype in (kind, kinds[0]))
            raise UserError(f"{file}: is {one}, but {files[0].name} is {other}")
    _, shape, dtype = kinds[0]
    array = _Planes(files, (len(files), *shape), np.dtype(dtype))
    flat = _micrometres(place.within(2))
    steps = Place.aligned(dict(zip("XY", place.sizes, strict=False)), place.unit)
    notes = (f"{len(files)} planes from {files[0].name} to {files[-1].name}",)
    facts = {"place": steps, "notes": notes, "chunks": (1, *shape)}
    return Source(array, f"Z{axes}", flat, **facts)


class _Planes:
    """Files of one plane each as an array."""

    def __init__(self, files: list[Path], shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.files, self.shape, self.dtype = files, shape, dtype

    def part(self, where: tuple[int | slice, ...]) -> np.ndarray:
        import tifffile

        planes, single = self.files[where[0]], isinstance(where[0], int)
        slab = []
        for file in [planes] if single else planes:
            with library_errors(file):
                plane = tifffile.imread(file, key=0)
            if plane.shape != self.shape[1:]:
                raise UserError(f"{file}: was changed while it was read")
            slab.append(plane[where[1:]])
        return slab[0] if single else np.stack(slab)


def _axes(axes: str) -> str:
    """Return tifffile's letters with an unnamed sequence of pages (Q or I) taken for z."""
    return re.sub("[QI]", "Z", axes, count=1) if "Z" not in axes else axes


def _check_segments(path: Path, series: Any) -> None:
    """Raise UserError if a page lies beyond the file's end: it would be read as zeros."""
    for page in series.pages:
        if page is None:
            raise UserError(f"{path}: lacks a page, or a neighbouring file that it refers to")
        ends = [a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > page.parent.filehandle.size:
            raise UserError(f"{path}: cut: its header speaks of more bytes than there are")


def _micrometres(place: Place) -> dict[str, float]:
    """Return the sizes that the file tells, by axis."""
    known = [(a, n * place.unit) for a, n in zip("XYZ", place.sizes, strict=False)]
    return {a: n for a, n in known if math.isfinite(n) and a not in place.guessed}


def _place(file: Any, series: Any, number: int) -> Place:
    """Return what the metadata say; the resolution of other TIFFs than ImageJ's is a printer's.

    OME-XML: https://docs.openmicroscopy.org/ome-model, Pixels and Plane. ImageJ: resolution tags
    in pixels per ``unit`` (``yunit``), and ``spacing`` between slices (``zunit``); by ``xorigin``,
    ``yorigin`` and ``zorigin`` the voxel that lies at 0, in voxels (``ij.measure.Calibration``).
    """
    if series.kind == "ome":
        return _ome_place(file, number)
    if file.is_lsm:  # metres
        found = file.lsm_metadata or {}
        return Place.aligned({a: 1e6 * _number(found.get(f"VoxelSize{a}")) for a in "XYZ"})
    found = file.imagej_metadata or {}
    if not found:
        return Place.aligned({})
    tags, sizes = series.keyframe.tags, {"Z": _number(found.get("spacing"))}
    for axis in "XY":
        pixels, length = tags[f"{axis}Resolution"].value if f"{axis}Resolution" in tags else (0, 0)
        sizes[axis] = length / pixels if pixels else math.nan
    unit = str(found.get("unit", ""))
    units = {a: str(found.get(f"{a.lower()}unit", unit)) for a in "XYZ"}
    lengths = {a: micrometres_per(name) or math.nan for a, name in units.items()}
    if any(map(math.isfinite, lengths.values())):
        place = Place.aligned({a: n * lengths[a] for a, n in sizes.items()})
    else:  # numbers without a unit: their ratio is known, if they are all there
        flat = "Z" not in _axes(series.axes)
        told = math.isfinite(sizes["Z"]) or flat
        place = Place.aligned(sizes if told else {}, math.nan)
    origins = [_number(found.get(f"{a}origin")) for a in "xyz"]
    return place.moved([-n if math.isfinite(n) else 0.0 for n in origins])


def _ome_place(file: Any, number: int) -> Place:
    """Return where an image of an OME-TIFF stands, its first plane's stage position included."""
    import tifffile

    images = _list(tifffile.xml2dict(file.ome_metadata)["OME"]["Image"])
    pixels = images[min(number, len(images) - 1)]["Pixels"]
    sizes = {a: _number(pixels.get(f"PhysicalSize{a}")) for a in "XYZ"}
    lengths = {
        a: micrometres_per(str(pixels.get(f"PhysicalSize{a}Unit", "um"))) or math.nan for a in "XYZ"
    }
    known = {a: n * lengths[a] for a, n in sizes.items()}
    if any(map(math.isfinite, known.values())):
        place = Place.aligned(known)
    else:
        place = Place.aligned(sizes, math.nan)
    first = (_list(pixels.get("Plane", {})) or [{}])[0]
    way = [
        _number(first.get(f"Position{a}"))
        * (micrometres_per(str(first.get(f"Position{a}Unit", ""))) or math.nan)
        for a in "XYZ"
    ]
    voxels = np.array(way) / place.sizes / place.unit
    return place.moved(np.where(np.isfinite(voxels), voxels, 0.0).tolist())


def _list(entry: Any) -> list[Any]:
    """Return an element of OME-XML as a list, of one where there is one."""
    return list(entry) if isinstance(entry, (list, tuple)) else [entry]


def _number(entry: Any) -> float:
    """Return an entry of the metadata as a number, with a decimal comma too; NaN for none."""
    try:
        return float(str(entry).replace(",", "."))
    except ValueError:
        return math.nan


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write ImageJ's TIFF, or OME's if the name says so, page by page.

    Sizes that are guessed are left out; a place is written as :func:`_place` reads it.
    """
    import tifffile

    flat = len(layout.shape) == 2
    ome = ".ome.tif" in path.name.lower()
    place = layout.placed.in_units(1.0)
    known = math.isfinite(place.unit)
    sizes = {a: n for a, n in zip("XYZ", place.sizes, strict=False) if a not in place.guessed}
    sizes = sizes if place.tells_ratio else {}
    metadata: dict[str, Any] = {"axes": "YX" if flat else "ZYX"}
    metadata |= _ome_fields(place, sizes, layout) if ome else _imagej_fields(place, sizes)
    resolution = None
    if {"X", "Y"} <= {*sizes}:
        resolution = (1 / sizes["X"], 1 / sizes["Y"])
    elif known and not ome:
        resolution = (0, 0)
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


def _imagej_fields(place: Place, sizes: Mapping[str, float]) -> dict[str, Any]:
    """Return ImageJ's unit and spacing, and its origins as far as they are not 0."""
    zeros = {a: -w / n for a, w, n in zip("xyz", place.way, place.sizes, strict=False)}
    return {
        **({"unit": "um"} if math.isfinite(place.unit) else {}),
        **({"spacing": sizes["Z"]} if "Z" in sizes else {}),
        **{f"{a}origin": round(n, 9) for a, n in zeros.items() if abs(n) > 1e-9},
    }


def _ome_fields(place: Place, sizes: Mapping[str, float], layout: StackLayout) -> dict[str, Any]:
    """Return OME's sizes, and the position of each plane if the first is not at 0."""
    unit = "µm" if math.isfinite(place.unit) else "pixel"
    fields: dict[str, Any] = {}
    for axis, size in sizes.items():
        fields |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": unit}
    if any(place.way) and math.isfinite(place.unit):
        planes = layout.shape[2] if len(layout.shape) == 3 else 1
        steps = {"Z": place.sizes[2]} if len(layout.shape) == 3 else {}
        fields["Plane"] = {}
        for axis, start in zip("XYZ", place.way, strict=False):
            ways = [start + k * steps.get(axis, 0.0) for k in range(planes)]
            fields["Plane"] |= {f"Position{axis}": ways, f"Position{axis}Unit": ["µm"] * planes}
    return fields
