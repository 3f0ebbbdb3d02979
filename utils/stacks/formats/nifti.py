"""NIfTI, and Analyze, by nibabel; packed files are unpacked as far as a slab reaches."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from utils.errors import UserError
from utils.stacks.place import Place, micrometres_per
from utils.stacks.stack import Contents, FileArray, StackLayout, library_errors, whole_of

KEEPS = ("voxel size", "place", "directions")
UNITS = {1e6: "meter", 1e3: "mm", 1.0: "micron"}  # those that NIfTI knows, by their micrometres
SPACE = "right-anterior-superior"  # NRRD's name for NIfTI's space


def contents(path: Path) -> Contents:
    """Open a file or pair; of a packed one all that precedes a slab behind the last is unpacked."""
    packed = path.name.lower().endswith(".gz")
    with library_errors(path):
        image: Any = nibabel.load(path, mmap=False, keep_file_open=packed)
        shape, header, dtype = image.shape, image.header, np.dtype(image.get_data_dtype())
        affine, sizes = np.array(image.affine, float), header.get_zooms()
        unit = header.get_xyzt_units()[0] if hasattr(header, "get_xyzt_units") else ""
        codes = [header[name] for name in ("sform_code", "qform_code") if name in header]
        made_up = not any(codes) and np.allclose(affine, header.get_base_affine())  # nibabel's own
        scaled = image.dataobj.slope not in (None, 1) or image.dataobj.inter not in (None, 0)
    if len(shape) > 5:
        most = "at most x, y, z, time and channel are read"
        raise UserError(f"{path}: has {len(shape)} axes; {most}")
    place = Place(affine[:3, :3], affine[:3, 3], micrometres_per(unit), SPACE)
    if made_up or not place.usable:
        place = Place.aligned(dict(zip("XYZ", sizes, strict=False)), place.unit)
    same = np.allclose(place.sizes[: len(shape)], sizes[:3], rtol=1e-3) or np.allclose(sizes, 1)
    notes = () if same else ("voxel sizes are those of its affine; its pixdim differs",)
    if scaled and dtype.kind in "uif":
        dtype = np.dtype(np.float64)
    told = {"axes": "XYZTC"[: len(shape)], "place": place, "notes": notes}
    only = FileArray(path, shape, dtype, lambda where: image.dataobj[where], **told)
    return Contents(path, {"": only}, lambda name: only)


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a file, packed if its ending says so; takes the whole stack into memory."""
    place = layout.placed.in_space(SPACE).in_units(UNITS)
    affine = np.eye(4)
    ways, axes = place.steps.shape
    affine[:ways, :axes] = place.steps
    if (ways, axes) == (3, 2):  # a plane: the third axis stands upright on it
        normal = np.cross(*place.steps.T)
        affine[:3, 2] = normal / np.linalg.norm(normal)
    affine[:ways, 3] = place.first
    long = max(layout.shape) > 32767  # which NIfTI-1 cannot count
    kind = nibabel.Nifti2Image if long else nibabel.Nifti1Image
    image = kind(whole_of(slabs, layout), affine)
    image.header.set_xyzt_units(UNITS.get(place.unit, "unknown"))
    nibabel.save(image, path)
