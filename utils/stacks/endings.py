"""The table of formats by their endings, and a stack written by its output's ending."""

import importlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, disk_errors
from utils.replacing import replacing
from utils.stacks.place import Place
from utils.stacks.stack import StackLayout

ENDINGS = {
    **dict.fromkeys((".tif", ".tiff", ".lsm"), "tiff"),
    **dict.fromkeys((".h5", ".hdf5", ".ims", ".xml"), "hdf5"),
    **dict.fromkeys((".nrrd", ".nhdr"), "nrrd"),
    **dict.fromkeys((".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz"), "nifti"),
    **{".zarr": "zarr", ".npy": "npy", ".czi": "czi"},
}
"""File endings and the formats that they mean; ``.ome.tif`` and ``.ome.zarr`` are among them."""
ONLY_READ = (".lsm", ".nhdr", ".hdr", ".img", ".hdr.gz", ".img.gz", ".ims", ".xml", ".czi")
"""Endings that no output may have: two files, or another program's own."""
BIOFORMATS = ".lif .oib .oif .oir .nd2 .vsi .stk .sld .mrc .dv .n5".split()
CONVERTED = {
    **dict.fromkeys(BIOFORMATS, "save it as .tif in Fiji (Bio-Formats), or run bioformats2raw"),
    **dict.fromkeys((".h5j", ".am"), "open it in Fiji or VVD Viewer and save it as .nrrd or .tif"),
    **dict.fromkeys((".v3draw", ".v3dpbd"), "open it in Vaa3D and save it as .tif"),
    ".companion.ome": "name one of the .ome.tif files beside it",
}
"""How to make a stack that is read of one that is not, by its ending."""


def format_of(path: str | Path) -> str:
    """Return the format that the ending of ``path`` means; UserError for an unknown one.

    A folder within a ``.zarr`` is Zarr whatever its name; another one, of no ending, holds planes.
    """
    name = Path(path).name.lower()
    for ending, kind in ENDINGS.items():
        if name.endswith(ending):
            return kind
    for ending, advice in CONVERTED.items():
        if name.endswith(ending):
            raise UserError(f"{path}: {ending} is not read here: {advice}")
    if name and Path(path).is_dir():
        return "tiff" if zarr_around(path) == Path(path) else "zarr"
    known = f"the known ones are {', '.join(ENDINGS)}, and folders of planes in .tif"
    raise UserError(f"{path}: unknown ending; {known}; Fiji saves most others as .tif")


def module_of(path: str | Path) -> Any:
    """Return the module of the format of ``path``, loaded with its library where it is needed.

    Its ``contents`` opens a file, ``write`` puts slabs (X, Y, n), in order, under a free name, and
    ``KEEPS`` is what a file can hold beside the voxels.
    """
    return importlib.import_module(f"utils.stacks.formats.{format_of(path)}")


def not_kept(path: str | Path, place: Place) -> str | None:
    """Return one line on what an output of this ending cannot hold of ``place``; None for all."""
    has = {"voxel size": place.tells_ratio, "place": any(place.way), "directions": place.turned}
    keeps = module_of(path).KEEPS
    lost = [name for name, given in has.items() if given and name not in keeps]
    return f"{path}: this format does not hold the {' and '.join(lost)}" if lost else None


def zarr_around(path: str | Path) -> Path:
    """Return the outermost folder ending in ``.zarr`` that ``path`` lies in, or is; else itself."""
    path = Path(path)
    around = [folder for folder in path.parents if folder.name.lower().endswith(".zarr")]
    return around[-1] if around else path


def split_ending(path: str | Path) -> tuple[str, str]:
    """Return the file's name without its ending, and the ending as it is, ``.ome`` included."""
    format_of(path)
    name = Path(path).name
    ending = max((e for e in ENDINGS if name.lower().endswith(e)), key=len, default="")
    stem = name[: len(name) - len(ending)]
    stem = stem[: -len(".ome")] if stem.lower().endswith(".ome") else stem
    return stem, name[len(stem) :]


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise UserError unless an output may be written: its ending, its place; leaves nothing."""
    name, written = Path(path).name.lower(), [e for e in ENDINGS if e not in ONLY_READ]
    if not name.endswith(tuple(written)):
        what = "only read" if name.endswith(ONLY_READ) else "unknown ending"
        raise UserError(f"{path}: {what}; outputs end in {', '.join(written)}")
    check_free(Path(path), overwrite=overwrite)


def check_free(path: Path, *, overwrite: bool) -> None:
    """Raise UserError unless a file, of whatever ending, may be written; leaves nothing."""
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already; --overwrite replaces it")
    if path.is_dir() and not path.name.lower().endswith(".zarr"):
        raise UserError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    with disk_errors(f"{path}: the folder {path.parent}", "written"):
        tempfile.TemporaryFile(dir=path.parent).close()


def write_stack(path: str | Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a stack in the format of its ending; what stood under ``path`` is replaced.

    ``slabs`` are (X, Y, n) of any n, in order, together ``layout.shape``. Raises UserError for an
    unknown ending, or a disk that cannot be written; nothing is left then.
    """
    path = Path(path)
    check_output(path, overwrite=True)
    write = module_of(path).write
    with replacing(path) as temporary:
        free = shutil.disk_usage(path.parent).free
        if layout.nbytes > free:  # at which HDF5 and mapped files would end the process
            needs = f"needs up to {layout.nbytes / 1e9:.1f} GB of disk"
            raise UserError(f"{path}: {needs}, and {free / 1e9:.1f} GB are free")
        write(temporary, slabs, layout)
