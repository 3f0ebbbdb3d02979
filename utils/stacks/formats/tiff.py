"""TIFF by tifffile: ImageJ's, OME's and others, RGB and big ones."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable
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
    planes_of,
    quiet,
)

TIFF_DAMAGE = re.compile("invalid (page|value) offset|corrupted|failed to reshape")
"""What tifffile logs where a file is cut before it goes on with the pages that are left."""


def read(path: Path, key: str | None) -> Source:
    """Open a file's first series; voxels that stand in one piece are mapped."""
    import tifffile

    with library_errors(path):
        file = tifffile.TiffFile(path)
    try:
        with library_errors(path):
            with quiet("tifffile") as messages:
                found = list(file.series)
            damage = [text for text in messages if TIFF_DAMAGE.search(text)]
            if damage or not found:
                raise UserError(f"{path}: cut or damaged ({[*damage, 'holds no image'][0]})")
            series = found[0]
            spacing, placement = _spacing(file), _placement(file)
            in_one_piece = series.dataoffset is not None
            if not in_one_piece:
                _check_segments(path, series)
        if in_one_piece:
            array = FileArray.found(path, lambda: tifffile.memmap(path, series=0, mode="r"))
        else:
            import zarr

            opened = functools.cache(lambda: zarr.open_array(series.aszarr(level=0), mode="r"))
            array = FileArray.found(path, opened)
    except BaseException:
        file.close()
        raise
    return Source(array, _axes(series.axes), spacing, placement=placement, close=file.close)


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


def _spacing(file: Any) -> dict[str, float]:
    """Return what OME or ImageJ metadata say; the resolution of other TIFFs is that of a printer.

    OME-XML: https://docs.openmicroscopy.org/ome-model, Pixels. ImageJ: resolution tags in pixels
    per ``unit``, and ``spacing`` between slices.
    """
    if file.ome_metadata:
        pixels = _ome_pixels(file)
        return {
            a: float(pixels[f"PhysicalSize{a}"]) * micrometres(pixels.get(f"PhysicalSize{a}Unit"))
            for a in "XYZ"
            if f"PhysicalSize{a}" in pixels
        }
    if not file.imagej_metadata or "unit" not in file.imagej_metadata:
        return {}
    unit = micrometres(str(file.imagej_metadata["unit"]))
    tags = file.pages[0].tags
    spacing = {"Z": float(file.imagej_metadata.get("spacing", math.nan)) * unit}
    for axis in "XY":
        pixels, length = tags[f"{axis}Resolution"].value
        spacing[axis] = length / pixels * unit if pixels else math.nan
    return spacing


def _placement(file: Any) -> dict[str, Any]:
    """Return where the first voxel lies, if ImageJ tells.

    It does by ``xorigin``, ``yorigin`` and ``zorigin``, the voxel that lies at 0, in voxels
    (``ij.measure.Calibration``).
    """
    found = file.imagej_metadata or {}
    places = {a: _number(found.get(f"{a.lower()}origin")) for a in "XYZ"}
    known = {axis: place for axis, place in places.items() if math.isfinite(place)}
    return {"imagej origin": known} if known else {}


def _number(entry: Any) -> float:
    """Return an entry of the metadata as a number, NaN where it is none."""
    try:
        return float(entry)
    except (TypeError, ValueError):
        return math.nan


def _ome_pixels(file: Any) -> dict[str, Any]:
    """Return the element ``Pixels`` of the first image, https://docs.openmicroscopy.org/ome-model."""
    import tifffile

    images = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
    return (images[0] if isinstance(images, (list, tuple)) else images)["Pixels"]


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write ImageJ's TIFF, or OME's if the name says so, page by page.

    In ImageJ's, a box says where it was cut out, as :func:`_placement` reads it.
    """
    import tifffile

    flat = len(layout.shape) == 2
    ome = ".ome.tif" in path.name.lower()
    metadata: dict[str, Any] = {"axes": "YX" if flat else "ZYX"}
    metadata |= {} if ome else _imagej_place(layout)
    resolution = None
    if layout.spacing:
        resolution = (1 / layout.spacing[0], 1 / layout.spacing[1])
        if ome:
            for axis, size in zip("XYZ", layout.spacing, strict=False):
                metadata.update({f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"})
        else:
            metadata.update(unit="um", **({} if flat else {"spacing": layout.spacing[2]}))
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


def _imagej_place(layout: StackLayout) -> dict[str, float]:
    """Return ImageJ's origins, as far as they are not 0."""
    own, origin = layout.placement.get("imagej origin", {}), layout.origin or (0,) * 3
    places = {a: own.get(a, 0.0) - start for a, start in zip("XYZ", origin, strict=False)}
    return {f"{axis.lower()}origin": place for axis, place in places.items() if place}
