"""HDF5 by h5py: any array of Fiji, ilastik and others, and this project's simulated volumes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.stacks.axes import told_axes
from utils.stacks.formats import hdf5_split
from utils.stacks.formats.hdf5_parts import beside, packed_chunks, readable, warn_of_absent
from utils.stacks.place import Place
from utils.stacks.stack import (
    Entry,
    FileArray,
    Source,
    StackLayout,
    chunks_of,
    fill_chunks,
    library_errors,
    named,
)
from utils.storage import VolumeFile


def read(path: Path, key: str | None) -> Source:
    """Open an array of a file, or what its program keeps as one stack in several of them.

    The latter are the images of a file of simulated volumes, and what :mod:`hdf5_split` knows; a
    BigDataViewer ``.xml`` stands for the file that it names.
    """
    found = _contents(path)
    try:
        if found.simulated and key is None:
            found.file.close()
            return _read_simulated(found.path)
        return found.open(named(path, found.named(key), key, found.lost))
    except BaseException:
        found.file.close()
        raise


def entries(path: Path) -> list[Entry]:
    """Return what there is in a file to be named by ``--key``."""
    found = _contents(path)
    try:
        if found.simulated:
            simulated = _read_simulated(found.path)
            simulated.close()
            return [Entry.of(simulated)]
        names = found.named(None) or named(path, {}, None, found.lost)
        return [Entry.of(found.open(name), name, chosen=len(names) == 1) for name in names]
    finally:
        found.file.close()


@dataclass(frozen=True)
class _Contents:
    """What stands in an open file."""

    path: Path
    file: Any
    simulated: bool
    sizes: hdf5_split.Sizes
    arrays: Mapping[str, Any]
    """Datasets of two axes or more, each under one of its names."""
    others: Mapping[str, Any]
    """The same ones under further names."""
    stacks: Mapping[str, Source]
    """Those that several of them make together."""
    lost: str
    """Says which links lead nowhere; empty if none does."""

    def named(self, key: str | None) -> Mapping[str, Any]:
        """Return what may be read by name, or without one."""
        whole = {name: stack.array for name, stack in self.stacks.items()}
        return whole or self.arrays if key is None else {**self.others, **self.arrays, **whole}

    def open(self, name: str) -> Source:
        """Return what is called ``name``."""
        if name in self.stacks:
            return self.stacks[name]
        array = self.arrays[name] if name in self.arrays else self.others[name]
        part = hdf5_split.split_part(self.path, self.file, name, array, self.sizes)
        return part or _source(self.path, self.file, array)


def _contents(path: Path) -> _Contents:
    """Open a file and look through it, along its links too."""
    import h5py

    path, sizes = hdf5_split.file_of(path)
    with library_errors(path):
        file = h5py.File(path, "r")
    try:
        with library_errors(path):
            begun = "vol_data" in file
        simulated = begun and VolumeFile(path).complete
        arrays: dict[str, Any] = {}
        others: dict[str, Any] = {}
        lost: list[str] = []
        known: set[Any] = set()
        with library_errors(path):
            for name, item in _walk(file, lost):
                if isinstance(item, h5py.Dataset) and item.ndim > 1:
                    array = beside(item)
                    (others if array in known else arrays)[name] = array
                    known.add(array)
        stacks = hdf5_split.split_stacks(path, file, arrays, sizes)
    except BaseException:
        file.close()
        raise
    said = f"; its links lead nowhere: {', '.join(lost[:4])}" if lost else ""
    return _Contents(path, file, simulated, sizes, arrays, others, stacks, said)


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
        except (KeyError, OSError):  # h5py's own for a link that leads nowhere
            there = f" of {link.filename}" if isinstance(link, h5py.ExternalLink) else ""
            lost.append(f"{prefix}{name} (to {getattr(link, 'path', 'nothing')}{there})")
            continue
        yield f"{prefix}{name}", item
        if isinstance(item, h5py.Group) and item not in entered:
            entered.add(item)
            own.extend((f"{prefix}{name}/", item, below) for below in item)


def _source(path: Path, file: Any, dataset: Any) -> Source:
    """Return a dataset with what its attributes say."""
    array = FileArray.found(path, lambda: readable(path, dataset))
    with library_errors(path):
        axes = _axes(dataset)
        sizes = np.ravel(dataset.attrs.get("element_size_um", ())).astype(float)
    spatial = "".join(a for a in axes or "ZYX" if a in "XYZ")[-len(array.shape) :]
    spacing = dict(zip(spatial, sizes, strict=True)) if len(sizes) == len(spatial) else {}
    return Source(
        array,
        axes,
        Place.aligned(spacing),
        warning=lambda: warn_of_absent(path, [dataset]),
        close=file.close,
        chunks=packed_chunks(dataset),
    )


def _axes(array: Any) -> str | None:
    """Return the axes that Fiji's, ilastik's, netCDF's or this project's attributes name."""
    tags = json.loads(array.attrs.get("axistags", '{"axes": []}'))["axes"]  # vigra, ilastik
    scales = [next(iter(dimension.keys()), "") for dimension in array.dims]
    return told_axes(array.attrs, [[tag["key"] for tag in tags], scales], array.ndim)


def _read_simulated(path: Path) -> Source:
    """Return the images of a file of simulated volumes; edges of its cube have no micrometres."""
    file = VolumeFile(path)

    class Images:
        shape = (len(file), *file.shape)
        dtype = np.dtype(np.float32)

        def part(self, where: tuple[Any, ...]) -> np.ndarray:
            return file.read_image(where[0], where[1:])

    return Source(Images(), "NXYZ", close=file.close)


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
