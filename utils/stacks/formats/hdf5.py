"""HDF5 by h5py: any array of Fiji, ilastik and others, and this project's simulated volumes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from utils.stacks.stack import (
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
    """Open an array of a file, or the images of a file of simulated volumes."""
    import h5py

    with library_errors(path):
        file = h5py.File(path, "r")
    try:
        with library_errors(path):
            simulated = key is None and "vol_data" in file
        if simulated and VolumeFile(path).complete:
            file.close()
            return _read_simulated(path)
        arrays: dict[str, FileArray] = {}

        def take(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset) and item.ndim > 1:
                arrays[name] = FileArray.found(path, lambda: item)

        with library_errors(path):
            file.visititems(take)
        array = arrays[named(path, arrays, key)]
        with library_errors(path):
            dataset = array.load()
            axes = _axes(dataset)
            sizes = np.ravel(dataset.attrs.get("element_size_um", ())).astype(float)
    except BaseException:
        file.close()
        raise
    spatial = "".join(a for a in axes or "ZYX" if a in "XYZ")[-len(array.shape) :]
    spacing = dict(zip(spatial, sizes, strict=True)) if len(sizes) == len(spatial) else {}
    return Source(array, axes, spacing, close=file.close)


def _axes(array: Any) -> str | None:
    """Return the axes that Fiji's, ilastik's or this project's attributes name; None if none do."""
    if "axes" in array.attrs:
        return str(array.attrs["axes"]).upper()
    if "axistags" in array.attrs:  # vigra, ilastik
        return "".join(a["key"] for a in json.loads(array.attrs["axistags"])["axes"]).upper()
    labels = "".join(dimension.label for dimension in array.dims).upper()
    return labels if len(labels) == array.ndim else None


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
