"""HDF5 by h5py: any array of Fiji, ilastik and others, and this project's simulated volumes."""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.stacks.axes import told_axes
from utils.stacks.formats.hdf5_parts import beside, readable
from utils.stacks.formats.hdf5_split import file_of, split_stacks
from utils.stacks.place import Place, number_in
from utils.stacks.stack import Contents, FileArray, StackLayout, fill, library_errors
from utils.storage import VolumeFile

KEEPS = ("voxel size",)


def contents(path: Path) -> Contents:
    """Open a file and look through it, along its links too; its arrays have two axes or more.

    Read unasked is what its program keeps as one stack in several of them: the images of a file of
    simulated volumes, and what :mod:`hdf5_split` knows.
    """
    path, sizes = file_of(path)
    every, first, lost = {}, {}, []
    with ExitStack() as held:
        with library_errors(path):
            file = held.enter_context(h5py.File(path, "r"))
            for name, item in _walk(file, lost):
                if isinstance(item, h5py.Dataset) and item.ndim > 1:
                    every[name] = beside(item)
                    first.setdefault(every[name], name)
        volumes = held.enter_context(VolumeFile(path))
        if "vol_data" in every and volumes.complete:  # edges of its cube have no micrometres
            told = {"shape": (len(volumes), *volumes.shape), "dtype": np.dtype(np.float32)}
            told["read"] = lambda where: volumes.read_image(where[0], where[1:])
            whole = {"": FileArray(path, axes="NXYZ", **told)}
        else:
            whole = split_stacks(path, file, {n: array for array, n in first.items()}, sizes)
        close = held.pop_all().close

    def opened(name: str) -> FileArray:
        if name in whole:
            return whole[name]
        alone = split_stacks(path, file, {name: every[name]}, sizes)
        return alone[""] if alone else _array(path, every[name])

    note = f"its links lead nowhere: {', '.join(lost[:4])}" if lost else ""
    listed = [*whole] or [*first.values()]
    return Contents(path, every | whole, opened, listed, listed, close=close, note=note)


def _walk(file: Any, lost: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield names and what they stand for, own ones first; links to nowhere go to ``lost``."""
    own, linked, entered = deque([("", file)]), deque(), set()
    while own or linked:
        prefix, item = (own or linked).popleft()
        yield prefix, item
        if not isinstance(item, h5py.Group) or item in entered:
            continue
        entered.add(item)
        for child in item:
            name, link = f"{prefix}/{child}".lstrip("/"), item.get(child, getlink=True)
            try:
                (own if isinstance(link, h5py.HardLink) else linked).append((name, item[child]))
            except (KeyError, OSError, RuntimeError):  # h5py's own for a link that leads nowhere
                there = f" of {link.filename}" if isinstance(link, h5py.ExternalLink) else ""
                lost.append(f"{name} (to {getattr(link, 'path', 'nothing')}{there})")


def _array(path: Path, dataset: Any) -> FileArray:
    """Return a dataset with what its attributes say."""
    parts = readable(path, [dataset])
    with library_errors(path):
        tags = json.loads(dataset.attrs.get("axistags", '{"axes": []}'))["axes"]  # vigra, ilastik
        scales = [next(iter(dimension.keys()), "") for dimension in dataset.dims]  # netCDF
        axes = told_axes(dataset.attrs, [[tag["key"] for tag in tags], scales], dataset.ndim)
        told = np.ravel(dataset.attrs.get("element_size_um", ())).tolist()
        sizes = [number_in(size) for size in told]
        spatial = "".join(a for a in axes or "ZYX" if a in "XYZ")[-dataset.ndim :]
        known = zip(spatial, sizes, strict=True) if len(sizes) == len(spatial) else ()
        place = Place.aligned(dict(known))
    array = FileArray.found(path, lambda: dataset, axes=axes, place=place, **parts)
    unread = told and not np.isfinite(sizes).any()
    return array.noted(f"its element_size_um is not read: {str(told)[:80]}" if unread else None)


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write an array ``data`` with Fiji's attributes."""
    axes = layout.axes
    with h5py.File(path, "w") as file:
        array = file.create_dataset("data", **layout.stored(axes), compression=1)
        array.attrs["axes"] = axes
        if layout.spacing:
            array.attrs["element_size_um"] = [layout.spacing["XYZ".index(a)] for a in axes]
        fill(array, axes, slabs)
