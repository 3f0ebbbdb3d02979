"""NIfTI by nibabel; packed files are unpacked as far as a slab reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.stacks.stack import FileArray, Source, StackLayout, library_errors, whole_of


def read(path: Path, key: str | None) -> Source:
    """Open a file; of a packed one all that precedes a slab behind the last is unpacked for it."""
    import nibabel

    packed = path.name.lower().endswith(".gz")
    with library_errors(path):
        image = nibabel.Nifti1Image.from_filename(path, mmap=False, keep_file_open=packed)
        count, sizes = len(image.shape), image.header.get_zooms()
        unit, stored = image.header.get_xyzt_units()[0], np.dtype(image.get_data_dtype())
    if count > 5:
        raise UserError(f"{path}: has {count} axes; at most x, y, z, time and channel are read")
    length = {"meter": 1e6, "mm": 1e3, "micron": 1.0}.get(unit, math.nan)
    spacing = {axis: float(size) * length for axis, size in zip("XYZ", sizes, strict=False)}
    scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
    dtype = np.dtype(np.float64) if scaled and stored.kind in "uif" else stored
    array = FileArray(path, image.shape, dtype, lambda: image.dataobj)
    placement = {"nifti affine": image.affine, "nifti unit": unit}
    return Source(array, "XYZTC"[:count], spacing, placement=placement)


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a file, packed if its ending says so; takes the whole stack into memory."""
    import nibabel

    affine = layout.placement.get("nifti affine")
    unit = layout.placement.get("nifti unit", "unknown")
    if affine is None:
        sizes = (*(layout.spacing or ()), 1.0, 1.0, 1.0)[:3]
        affine, unit = np.diag([*sizes, 1.0]), "micron" if layout.spacing else "unknown"
    if layout.origin:
        affine = np.array(affine, float)
        affine[:3, 3] += affine[:3, : len(layout.origin)] @ layout.origin
    image = nibabel.Nifti1Image(whole_of(slabs, layout), affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
