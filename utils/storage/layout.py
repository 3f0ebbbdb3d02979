"""Names, shapes, dtypes and chunks of what stands in the file.

Labels and images of a row are cut into chunks of ``CHUNK_EDGE`` voxels an edge, in the order of
their corners; those at the far borders are filled up with zeros. Axis order is (x, y, z).
"""

import functools
import itertools
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from utils.provenance import DATA_VERSION
from utils.simulation.volume import SimulatedVolume, VolumeParameters, WideParameters, WideVolume

CHUNK_EDGE = 32  # voxels; the fastest of 16, 32 and 64 (``benchmarks/bench_storage.py``)
GZIP_LEVEL = 3  # masks are read fastest; a fifth smaller than 1, and 6 takes twice as long


def version_note(path: Path, version: str) -> str:
    """Return what to tell who reads a file of another version; nothing for one of this version."""
    if version == DATA_VERSION:
        return ""
    return (
        f"{path} was made by version {version} of the simulation and is read as it is; "
        f"this version, {DATA_VERSION}, makes other samples of the same parameters"
    )


VOXELS = {
    "vol_labels": ("u1", "mask, (sample, x, y, z): 1 inside any column, left-out ones too"),
    "vol_instances": (
        "<u2",
        "instances, (sample, x, y, z): 0 background, k + 1 inside column k of this sample",
    ),
}
Ragged = Mapping[str, tuple[str, tuple[int, ...], str]]
"""Datasets with a flat array of its own length in each row: dtype, the shape that restores the
array, and what it holds."""
RAGGED: Ragged = {
    "points": ("<f4", (-1, 3), "mid-points of the columns, unit cube"),
    "entry_points": ("<f4", (-1, 3), "entry points of the columns, unit cube"),
    "e_r": ("<f4", (-1, 3), "column axes, outward; their norm scales lengths along them"),
    "e_theta": ("<f4", (-1, 3), "second vectors of the columns' frames"),
    "e_phi": ("<f4", (-1, 3), "third vectors of the columns' frames"),
    "column_type": ("u1", (-1,), "0 left out of the image, 1 dense, 2 clumped, 3 ring"),
    "control_points": ("<f4", (4, -1, 3), "Bezier control points of the neurites"),
    "lattice_coordinates": ("<i4", (-1, 3), "icosahedron face 0..19 and grid (i, j) on it"),
    "lattice_neighbours": ("<i4", (-1, 2), "pairs (k, l), k < l, of neighbouring columns"),
}


@dataclass(frozen=True)
class Kind:
    """What a file of a preset holds of each volume."""

    volume: type[SimulatedVolume]
    parameters: type[VolumeParameters | WideParameters]
    ragged: Ragged


REFERENCE = Kind(SimulatedVolume, VolumeParameters, RAGGED)
WIDE = Kind(
    WideVolume,
    WideParameters,
    {
        **RAGGED,
        "entry_points": ("<f4", (-1, 3), "proximal ends of the columns, unit cube"),
        "e_r": ("<f4", (-1, 3), "from the proximal to the distal ends, unit cube"),
        "column_type": ("u1", (-1,), "0 not stained, 1 stained"),
        "lattice_coordinates": ("<i4", (-1, 3), "chart, p, q; charts are sheets of their own"),
        "paths": (
            "<f4",
            (-1, 3),
            "nodes of the paths, column by column and as many of each, "
            "proximal to distal, voxels; the centre of voxel i is i + 0.5",
        ),
        "path_spacing": (
            "<f4",
            (-1,),
            "of each node the distance to the nearest other column at that depth, voxels",
        ),
    },
)


def chunk_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the chunks of a volume; a smaller volume is one chunk."""
    return tuple(min(CHUNK_EDGE, edge) for edge in shape)


def chunks_of(array: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield the first voxel of each chunk, and the chunk; at the far borders zeros fill it up."""
    size = chunk_shape(array.shape)
    for corner in itertools.product(*map(range, (0,) * array.ndim, array.shape, size)):
        part = array[tuple(slice(at, at + edge) for at, edge in zip(corner, size, strict=True))]
        chunk = np.zeros(size, array.dtype)
        chunk[tuple(map(slice, part.shape))] = part
        yield corner, chunk


def row_bytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of an image, float16, in full chunks."""
    pairs = zip(shape, chunk_shape(shape), strict=True)
    return 2 * math.prod(-(-edge // chunk) * chunk for edge, chunk in pairs)


@functools.cache
def parameter_layout(
    parameters: type[VolumeParameters | WideParameters],
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each field: int, float, tuples of either, and text."""
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    dtypes = {int: np.dtype("<i8"), float: np.dtype("<f8"), str: h5py.string_dtype()}
    for name, hint in typing.get_type_hints(parameters).items():
        items = typing.get_args(hint)
        layout[name] = (dtypes[items[0] if items else hint], (len(items),) if items else ())
    return layout
