"""A stack written by its output's ending, under a temporary name that is renamed when complete."""

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.errors import UserError, disk_errors
from utils.replacing import replacing
from utils.stacks.endings import check_written, module_of
from utils.stacks.stack import StackLayout


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise UserError unless ``path`` has a known ending and may be written; leaves nothing."""
    check_written(path)
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
    check_written(path)
    write = module_of(path).write
    with replacing(path) as temporary:
        free = shutil.disk_usage(path.parent).free
        if layout.nbytes > free:  # at which HDF5 and mapped files would end the process
            needs = f"needs up to {layout.nbytes / 1e9:.1f} GB of disk"
            raise UserError(f"{path}: {needs}, and {free / 1e9:.1f} GB are free")
        write(temporary, slabs, layout)
