"""Small stacks and files of every format, for the tests beside this."""

from __future__ import annotations

import numpy as np

from utils.stacks import StackLayout, write_stack

SPACING = (0.25, 0.5, 2.0)
"""Micrometres along x, y, z."""
NAMES = (
    "a.tif",
    "a.tiff",
    "a.ome.tif",
    "a.h5",
    "a.hdf5",
    "a.nrrd",
    "a.nii",
    "a.nii.gz",
    "a.zarr",
    "a.ome.zarr",
    "a.npy",
)


def random_stack(shape=(7, 6, 5), dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed).integers(0, 200, shape)
    return values.astype(dtype)


def slabs_of(array, thickness=2):
    for start in range(0, array.shape[-1], thickness):
        yield array[..., start : start + thickness]


def save(path, array, **details):
    write_stack(path, slabs_of(array), StackLayout(array.shape, array.dtype, **details))
    return path
