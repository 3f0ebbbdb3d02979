"""HDF5 by h5py: any array of Fiji, ilastik and others, and this project's simulated volumes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
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
    MadeArray,
    Source,
    StackLayout,
    chunks_of,
    closed_if_it_fails,
    fill_chunks,
    library_errors,
)
from utils.stacks.units import number_in
from utils.storage import VolumeFile


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
        arrays = {name: array for array, name in first.items()}
        if volumes:
            whole = {"": _simulated(volumes)}
        else:
            whole = hdf5_split.split_stacks(path, file, arrays, sizes)
    unasked = {name: stack.array for name, stack in whole.items()} or arrays
    named = every | {name: array for name, array in unasked.items() if name}

    def source(name: str) -> Source:
        if name in whole:
            return whole[name]
        part = hdf5_split.split_part(path, file, name, every[name], sizes)
        return part or _source(path, every[name])

    def within(name: str) -> Mapping[str, Any]:
        found = {name: named[name]} if name in named else {}
        return found if name else unasked

    def close() -> None:
        file.close()
        if volumes:
            volumes.close()

    said = f"; its links lead nowhere: {', '.join(lost[:4])}" if lost else ""
    return Contents(path, unasked, within, source, close, named=named, lost=said, unasked=said[2:])


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


def _source(path: Path, dataset: Any) -> Source:
    """Return a dataset with what its attributes say."""
    array = FileArray.found(path, lambda: readable(path, dataset))
    with library_errors(path):
        tags = json.loads(dataset.attrs.get("axistags", '{"axes": []}'))["axes"]  # vigra, ilastik
        scales = [next(iter(dimension.keys()), "") for dimension in dataset.dims]  # netCDF
        names = [[tag["key"] for tag in tags], scales]
        axes = told_axes(dataset.attrs, names, dataset.ndim)
        told = np.ravel(dataset.attrs.get("element_size_um", ())).tolist()
    sizes = [number_in(n.decode("latin-1") if isinstance(n, bytes) else str(n)) for n in told]
    spatial = "".join(a for a in axes or "ZYX" if a in "XYZ")[-len(array.shape) :]
    spacing = dict(zip(spatial, sizes, strict=True)) if len(sizes) == len(spatial) else {}
    unread = f"its element_size_um is not read: {str(told)[:80]}"
    notes = () if np.isfinite(sizes).any() or not told else (unread,)
    return Source(
        array,
        axes,
        Place.aligned(spacing),
        notes=notes,
        warning=lambda: warn_of_absent(path, [dataset]),
        chunks=packed_chunks(dataset),
    )


def _simulated(file: VolumeFile) -> Source:
    """Return the images of a file of simulated volumes; edges of its cube have no micrometres."""
    shape = (len(file), *file.shape)
    images = MadeArray(
        shape, np.dtype(np.float32), lambda where: file.read_image(where[0], where[1:])
    )
    return Source(images, "NXYZ")


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write an array ``data`` with Fiji's attributes."""
    import h5py

    axes = layout.axes
    letters = "XYZ"[: len(axes)]
    shape = tuple(layout.shape[letters.index(a)] for a in axes)
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "data", shape, layout.dtype, chunks=chunks_of(shape, axes), compression=1
        )
        array.attrs["axes"] = axes
        if layout.spacing:
            array.attrs["element_size_um"] = [layout.spacing[letters.index(a)] for a in axes]
        fill_chunks(array, axes, slabs)
