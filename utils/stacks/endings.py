"""The table of formats: which endings mean which, and who reads and writes them."""

from __future__ import annotations

from pathlib import Path

from utils.errors import UserError
from utils.stacks.formats import hdf5, nifti, npy, nrrd, tiff, zarr

ENDINGS = {
    ".tif": "tiff",
    ".tiff": "tiff",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".ims": "hdf5",
    ".xml": "hdf5",
    ".nrrd": "nrrd",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".zarr": "zarr",
    ".npy": "numpy",
}
"""File endings and the formats that they mean; ``.ome.tif`` and ``.ome.zarr`` are among them."""
READ_ONLY = (".ims", ".xml")
"""Endings (Imaris's, BigDataViewer's) that no output can have."""
FORMATS = {
    "tiff": tiff,
    "hdf5": hdf5,
    "nrrd": nrrd,
    "nifti": nifti,
    "zarr": zarr,
    "numpy": npy,
}
"""Their modules. ``read`` opens a file, with the name of the array wanted or None, and returns what
it holds as a Source; ``write`` puts slabs (X, Y, n), in order, under a name that is free."""


def format_of(path: str | Path) -> str:
    """Return the format that the ending of ``path`` means; UserError for an unknown one.

    A folder within a ``.zarr`` is Zarr whatever its name.
    """
    name = Path(path).name.lower()
    for ending, kind in ENDINGS.items():
        if name.endswith(ending):
            return kind
    if zarr_around(path) != Path(path) and Path(path).is_dir():
        return "zarr"
    raise UserError(f"{path}: unknown ending; the known ones are {', '.join(ENDINGS)}")


def written_format(path: str | Path) -> str:
    """Return the format that an output's ending means; UserError for one that is only read."""
    if Path(path).suffix.lower() in READ_ONLY:
        raise UserError(f"{path}: is of a format that is only read; give .tif or another ending")
    return format_of(path)


def zarr_around(path: str | Path) -> Path:
    """Return the outermost folder ending in ``.zarr`` that ``path`` lies in, or is; else itself."""
    path = Path(path)
    around = [folder for folder in path.parents if folder.name.lower().endswith(".zarr")]
    return around[-1] if around else path


def split_ending(path: str | Path) -> tuple[str, str]:
    """Return the file's name without its ending, and the ending as it is, ``.ome`` included.

    Raises UserError for an unknown ending.
    """
    path = Path(path)
    format_of(path)
    ending = max((e for e in ENDINGS if path.name.lower().endswith(e)), key=len, default="")
    stem = path.name[: len(path.name) - len(ending)]
    if stem.lower().endswith(".ome"):
        stem = stem[: -len(".ome")]
    return stem, path.name[len(stem) :]
