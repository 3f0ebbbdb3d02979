"""NumPy's own files; arrays of pickled objects are refused."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.stacks.stack import Contents, FileArray, StackLayout, fill

KEEPS = ()


def contents(path: Path) -> Contents:
    """Map a file; the meaning of its axes is not in it."""
    only = FileArray.found(path, lambda: np.load(path, "r", allow_pickle=False))
    return Contents(path, {"": only}, lambda name: only)


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a file with the input's order of axes; it keeps no spacing."""
    shape = layout.stored(layout.axes)["shape"]
    array = np.lib.format.open_memmap(path, mode="w+", dtype=layout.dtype, shape=shape)
    fill(array, layout.axes, slabs).flush()
