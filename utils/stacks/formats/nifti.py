"""NIfTI by nibabel; packed files are unpacked as far as a slab reaches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.stack import Source, StackLayout, whole_of


def read(path: Path, key: str | None) -> Source:
    """Open a file; of a packed one all that precedes a slab behind the last is unpacked for it."""
    import nibabel

    packed = path.name.lower().endswith(".gz")
    image = nibabel.Nifti1Image.from_filename(path, mmap=False, keep_file_open=packed)
    count = len(image.shape)
    if count > 5:
        raise UserError(f"{path}: has {count} axes; at most x, y, z, time and channel are read")
    unit = {"meter": 1e6, "mm": 1e3, "micron": 1.0}.get(image.header.get_xyzt_units()[0], math.nan)
    sizes = zip("XYZ", image.header.get_zooms(), strict=False)
    spacing = {axis: float(size) * unit for axis, size in sizes}
    dtype = np.dtype(image.get_data_dtype())
    scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
    array = _Typed(image.dataobj, np.dtype(np.float64) if scaled and dtype.kind in "uif" else dtype)
    placement = {"nifti affine": image.affine, "nifti unit": image.header.get_xyzt_units()[0]}
    return Source(array, "XYZTC"[:count], spacing, placement=placement)


@dataclass(frozen=True)
class _Typed:
    """A lazy array together with the dtype that its slices have."""

    array: Any
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, where: tuple[Any, ...]) -> np.ndarray:
        return self.array[where]


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
