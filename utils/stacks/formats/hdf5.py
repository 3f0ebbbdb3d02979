"""HDF5 by h5py: any array of Fiji, ilastik and others, and this project's simulated volumes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.stacks.axes import told_axes
from utils.stacks.formats import hdf5_split
from utils.stacks.formats.hdf5_parts import beside, packed_chunks, readable, warn_of_absent
from utils.stacks.place import Place
from utils.stacks.stack import (
    Contents,
    FileArray,
    Made,
    StackLayout,
    chunks_of,
    closed_if_it_fails,
    fill,
    in_order,
    library_errors,
)
from utils.stacks.units import number_in
from utils.storage import VolumeFile

KEEPS = ("voxel size",)


def contents(path: Path) -> Contents:
    """Open a file and look through it, along its links too; its arrays have two axes or more.

    Read unasked is what its program keeps as one stack in several of them: the images of a file of
    simulated volumes, and what :mod:`hdf5_split` knows; a BigDataViewer ``.xml`` stands for the
    file that it names.
    """
    import h5py

    path, sizes = hdf5_split.file_of(path)
    with library_errors(path):
        file = h5py.File(path, "r")
    every: dict[str, Any] = {}
    first: dict[Any, str] = {}
    lost: list[str] = []
    with closed_if_it_fails(file):
        with library_errors(path):
            begun = "vol_data" in file
            for name, item in _walk(file, lost):
                if isinstance(item, h5py.Dataset) and item.ndim > 1:
                    every[name] = beside(item)
                    first.setdefault(every[name], name)
        volumes = VolumeFile(path) if begun and VolumeFile(path).complete else None
        if volumes:  # edges of its cube have no micrometres
            images = Made(lambda where: volumes.read_image(where[0], where[1:]))
            shape, kind = (len(volumes), *volumes.shape), np.dtype(np.float32)
            whole = {"": FileArray(path, shape, kind, lambda: images, axes="NXYZ")}
        else:
            arrays = {name: array for array, name in first.items()}
            whole = hdf5_split.split_stacks(path, file, arrays, sizes)

    def opened(name: str) -> FileArray:
        if name in whole:
            return whole[name]
        part = hdf5_split.split_part(path, file, name, every[name], sizes)
        return part or _array(path, every[name])

    def close() -> None:
        file.close()
        if volumes:
            volumes.close()

    listed = [*whole] or [*first.values()]
    note = f"its links lead nowhere: {', '.join(lost[:4])}" if lost else ""
    return Contents(path, every | whole, opened, listed, close=close, note=note)


def _walk(file: Any, lost: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield each name and what it stands for, own ones before those behind soft and external links.

    Each group is looked through once; a link that leads nowhere is noted in ``lost``.
    """
    import h5py

    own: deque[tuple[str, Any, str]] = deque(("", file, name) for name in file)
    linked: deque[tuple[str, Any, str]] = deque()
    entered = {file["/"]}
    while own or linked:
        hard = bool(own)
        prefix, group, name = (own or linked).popleft()
        link = group.get(name, getlink=True)
        if hard and not isinstance(link, h5py.HardLink):
            linked.append((prefix, group, name))
            continue
        try:
            item = group[name]
        except (KeyError, OSError, RuntimeError):  # h5py's own for a link that leads nowhere
            there = f" of {link.filename}" if isinstance(link, h5py.ExternalLink) else ""
            lost.append(f"{prefix}{name} (to {getattr(link, 'path', 'nothing')}{there})")
            continue
        yield f"{prefix}{name}", item
        if isinstance(item, h5py.Group) and item not in entered:
            entered.add(item)
            own.extend((f"{prefix}{name}/", item, below) for below in item)


def _array(path: Path, dataset: Any) -> FileArray:
    """Return a dataset with what its attributes say."""
    readable(path, dataset)
    with library_errors(path):
        tags = json.loads(dataset.attrs.get("axistags", '{"axes": []}'))["axes"]  # vigra, ilastik
        scales = [next(iter(dimension.keys()), "") for dimension in dataset.dims]  # netCDF
        names = [[tag["key"] for tag in tags], scales]
        axes = told_axes(dataset.attrs, names, dataset.ndim)
        told = np.ravel(dataset.attrs.get("element_size_um", ())).tolist()
        chunks = packed_chunks(dataset)
        sizes = [number_in(n.decode("latin-1") if isinstance(n, bytes) else str(n)) for n in told]
    spatial = "".join(a for a in axes or "ZYX" if a in "XYZ")[-dataset.ndim :]
    known = zip(spatial, sizes if len(sizes) == len(spatial) else (), strict=False)
    unread = f"its element_size_um is not read: {str(told)[:80]}"
    return FileArray.found(
        path,
        lambda: dataset,
        axes=axes,
        place=Place.aligned(dict(known)),
        notes=() if np.isfinite(sizes).any() or not told else (unread,),
        warning=lambda: warn_of_absent(path, [dataset]),
        chunks=chunks,
    )


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write an array ``data`` with Fiji's attributes."""
    import h5py

    axes, shape = layout.axes, in_order(layout)
    with h5py.File(path, "w") as file:
        chunks = chunks_of(shape, axes)
        array = file.create_dataset("data", shape, layout.dtype, chunks=chunks, compression=1)
        array.attrs["axes"] = axes
        if layout.spacing:
            array.attrs["element_size_um"] = [layout.spacing["XYZ".index(a)] for a in axes]
        fill(array, axes, slabs)
