"""NumPy's own files; arrays of pickled objects are refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from utils.stacks.stack import FileArray, Source, StackLayout, fill


def read(path: Path) -> Source:
    """Map a file; the meaning of its axes is not in it."""
    mapped = FileArray.found(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    return Source(mapped, None)


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a file with the input's order of axes; it keeps no spacing."""
    letters = "XYZ"[: len(layout.axes)]
    shape = tuple(layout.shape[letters.index(a)] for a in layout.axes)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=layout.dtype, shape=shape)
    fill(array, layout.axes, slabs)
    array.flush()
