"""What HDF5 arrays need beside their file: filters, other files, chunks that were written."""

import contextlib
import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from utils.errors import UserError
from utils.stacks.stack import library_errors


def beside(array: Any) -> Any:
    """Return a dataset that finds the files of its bytes beside its own, not where we started."""
    if array.external:
        name, shape, dtype, file = array.name, array.shape, array.dtype, array.file
        array.id.close()  # one that is open keeps its way of looking
        array = file.require_dataset(name, shape, dtype, efile_prefix="${ORIGIN}")
    return array


def readable(path: Path, arrays: Sequence[Any]) -> dict[str, Any]:
    """Return chunks and warning of datasets alike; UserError if a filter or bytes are not there."""
    with library_errors(path):
        made = [array.id.get_create_plist() for array in arrays]
        for code, name in {m.get_filter(k)[::3] for m in made for k in range(m.get_nfilters())}:
            if not h5py.h5z.filter_avail(code):
                with contextlib.suppress(ImportError):
                    importlib.import_module("hdf5plugin")  # which makes its filters available
            if not h5py.h5z.filter_avail(code):
                called = name.decode("utf-8", "replace").split(";")[0] or "without a name"
                packed = f"{arrays[0].name} is packed by a filter ({called}, number {code})"
                needs = "which needs the package hdf5plugin: pip install hdf5plugin"
                raise UserError(f"{path}: {packed}, {needs}")
        for array in arrays:
            needed = array.nbytes
            for name, first, size in array.external or ():
                file, wanted = Path(array.file.filename).parent / name, min(size, needed)
                needed -= wanted
                if not file.exists() or file.stat().st_size < first + wanted:
                    lacks = f"stand in {file}, which is {'cut' if file.exists() else 'absent'}"
                    raise UserError(f"{path}: the voxels of {array.name} {lacks}")
        chunks = arrays[0].chunks if made[0].get_nfilters() else None
    return {"chunks": chunks, "warning": lambda: _warn_of_absent(path, arrays)}


def _warn_of_absent(path: Path, arrays: Sequence[Any]) -> str | None:
    """Say what of datasets is read as the fill value for want of chunks, files or datasets."""
    with library_errors(path):
        found = [loss for array in arrays for loss in _losses(array)]
    if not found:
        return None
    more = f", and {len(found) - 3} more like it" if len(found) > 3 else ""
    reason = "right if nothing was to be stored there, wrong if a file was cut or left behind"
    return f"{path}: {'; '.join(found[:3])}{more}: read as the fill value, {reason}"


def _losses(array: Any) -> Iterator[str]:
    """Yield what is not there of a dataset, a line each."""
    name = array.name.strip("/")
    if array.is_virtual:
        yield from _lost_sources(array, name)
    elif array.chunks:
        total = math.prod(-(-n // edge) for n, edge in zip(array.shape, array.chunks, strict=True))
        absent = total - array.id.get_num_chunks()
        if absent > 0:
            yield f"{absent} of the {total} chunks of {name} were never written"
    elif not array.external and array.id.get_storage_size() == 0:  # of compact ones it is not 0
        yield f"nothing of {name} was ever written"


def _lost_sources(array: Any, name: str) -> Iterator[str]:
    """Yield what a virtual dataset refers to without its being there, or refers to nothing."""
    own, mapped = Path(array.file.filename), 0
    for source in array.virtual_sources():
        if "%" in source.file_name + source.dset_name:  # a pattern of files, read as far as they go
            mapped = array.size
            continue
        mapped += source.vspace.get_select_npoints()
        places = (own.parent / source.file_name, Path(source.file_name))
        file = own if source.file_name == "." else next(filter(Path.is_file, places), None)
        if file is None:
            yield f"a part of {name} stands in {source.file_name}, which is absent"
            continue
        with h5py.File(file, "r") as opened:
            if source.dset_name in opened:
                yield from _losses(opened[source.dset_name])
            else:
                yield f"a part of {name} is {source.dset_name} of {file.name}, which lacks it"
    if mapped < array.size:
        yield f"{array.size - mapped:,} of the {array.size:,} voxels of {name} stand nowhere"
