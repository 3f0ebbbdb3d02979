"""How much memory the prediction of a stack takes: told before it begins, and kept.

The slabs' bytes are counted, those of windows in the network measured with blank ones, whose
seconds tell how long the work will take. All bytes are of main memory.
"""

from __future__ import annotations

import contextlib
import math
import resource
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
from torch import nn

from utils.errors import UserError
from utils.prediction.sliding_window import Windows, predict_slabs
from utils.resampling import SLAB_BYTES
from utils.stacks import Stack, format_of
from utils.stacks.stack import CHUNK_PLANES

SHARE = 0.8
"""Of what is free, unless the user says otherwise."""
OVERHEAD = 90 << 20
"""Bytes for libraries that are loaded on the way, and for what the allocators keep."""
LOADING = 3
"""Copies of a stack that is loaded as a whole while it is: packed, unpacked, in its own order."""
MEASURED_VOXELS = 64**3
"""Longer windows than this are measured by shorter ones."""
UNEVEN = 1.3
"""Peak of a batch of four over twice that of two, at most: U-Nets of 1 to 16 channels had up to
1.31, in either precision, for what the allocator leaves free between tensors."""
WRITTEN_WHOLE = {"nrrd": 2.6, "nifti": 1.25}
"""Formats that are written as a whole, and how often their voxels are then in memory."""
DTYPES = {"mask": np.dtype(np.uint8), "probabilities": np.dtype(np.float32)}
"""The outputs that there can be."""


@dataclass(frozen=True)
class Memory:
    """What the process takes before it reads anything of the stack, and what it may come to."""

    present: int
    limit: int

    @classmethod
    def allowed(cls, gigabytes: float | None = None) -> Memory:
        """Return what the user allows, in GB (1e9 bytes), else most of what is free."""
        present = _resident()
        if gigabytes is not None:
            return cls(present, int(gigabytes * 1e9))
        free = psutil.virtual_memory().available
        with contextlib.suppress(OSError, ValueError):  # where no container sets a limit
            limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
            free = min(free, max(0, limit - present))
        return cls(present, present + int(SHARE * free))

    def peak(self, added: int) -> int:
        """Return what the process comes to with so many bytes of the stack."""
        return self.present + OVERHEAD + added

    def check(self, added: int, what: str, advice: str) -> None:
        """Raise UserError if so many bytes more are more than the limit."""
        if self.peak(added) > self.limit:
            raise UserError(
                f"{what} about {self.peak(added) / 1e9:.1f} GB, and {self.limit / 1e9:.1f} GB are "
                f"allowed; raise --memory{advice}"
            )


def check_loading(stack: Stack, memory: Memory) -> None:
    """Raise UserError if what can only be read as a whole, a file or its chunks, is too large."""
    if stack.loaded:
        what = f"{stack.path}: is of a format that is read as a whole, which needs"
        memory.check(LOADING * stack.loaded, what, " or save it as TIFF or OME-Zarr")
    if stack.unpacked:
        what = f"{stack.path}: its chunks, {stack.layer} deep, are unpacked whole, which needs"
        advice = ", cut the stack with --crop or save it in smaller chunks"
        memory.check(_layer_memory(stack), what, advice)


def _layer_memory(stack: Stack) -> int:
    """Return what a layer of chunks takes while it is read, in bytes."""
    planes = min(stack.layer, stack.shape[-1])
    return math.prod(stack.shape[:-1]) * planes * stack.voxel_bytes + stack.unpacked


def writing_memory(stack: Stack, name: str, path: Path) -> int:
    """Return the bytes that an output (``mask`` or ``probabilities``) takes while it is written."""
    itemsize = DTYPES[name].itemsize
    copies = WRITTEN_WHOLE.get(format_of(path))
    if copies:
        return int(copies * math.prod(stack.shape) * itemsize)
    return 3 * CHUNK_PLANES * math.prod(stack.shape[:-1]) * itemsize + 3 * SLAB_BYTES


def fit_batch(
    model: nn.Module,
    stack: Stack,
    shape: tuple[int, ...],
    windows: Windows,
    outputs: Mapping[str, Path],
    memory: Memory,
    *,
    fixed_batch: bool = False,
) -> tuple[Windows, int, float]:
    """Return the windows with the largest batch that fits, the process's peak, and the seconds.

    Both are estimated; the seconds are those of the network. ``shape`` is the stack's in the
    network's voxels. The batch is halved until it fits, down to two, unless it is fixed; UserError
    if nothing fits says what the smallest batch takes.
    """
    one, seconds = measure_window(model, windows)
    written = [writing_memory(stack, name, path) for name, path in outputs.items()]
    size = windows.batch_size
    while True:
        added = _stack_memory(stack, shape, windows.edges[-1], size * one, written)
        if memory.peak(added) <= memory.limit or fixed_batch or size // 2 < 2:
            break
        size //= 2
    advice = ", lower --window, cut the stack with --crop or write TIFF or OME-Zarr"
    memory.check(added, f"{stack.path}: needs", advice)
    return replace(windows, batch_size=size), memory.peak(added), seconds * windows.count(shape)


def measure_window(model: nn.Module, windows: Windows) -> tuple[int, float]:
    """Return the bytes and seconds that each window of a batch takes, by two blank ones at once.

    Two, since one alone may go through other kernels.
    """
    edges = list(windows.edges)
    while math.prod(edges) > MEASURED_VOXELS:
        longest = edges.index(max(edges))
        edges[longest] = -(-edges[longest] // 2)
    count = min(2, windows.batch_size)

    def blank_slabs(edges: Iterable[int]) -> Iterator[object]:
        first, *others = edges
        blank = replace(windows, edges=(first, *others), overlap=0, batch_size=count)
        shape = (count * first, *others)

        def read(start: int, stop: int) -> np.ndarray:
            return np.ones((*shape[:-1], stop - start), np.float32)

        return predict_slabs(model, read, shape, blank)

    _peak_growth(blank_slabs(-(-edge // 4) for edge in edges))  # loads what stays loaded
    started = time.perf_counter()
    grown = _peak_growth(blank_slabs(edges))
    seconds = time.perf_counter() - started
    share = math.prod(windows.edges) / (count * math.prod(edges))
    return int(UNEVEN * grown * share), seconds * share


def _peak_growth(steps: Iterable[object]) -> int:
    """Go through the steps; return by how much the resident memory grew at its highest."""
    with contextlib.suppress(OSError):  # elsewhere than on Linux there is no such file
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident()
    for _ in steps:
        pass
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, in bytes: the highest so far, which is no less
        return max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    fields = status.read_text().split()
    return max(0, 1024 * int(fields[fields.index("VmHWM:") + 1]) - before)


def _resident() -> int:
    """Return the bytes of main memory that this process takes now."""
    return psutil.Process().memory_info().rss


def _stack_memory(
    stack: Stack, shape: tuple[int, ...], depth: int, batch: int, written: Iterable[int]
) -> int:
    """Return the most that the work's stages hold of a stack, in bytes.

    A slab being read beside the layer of the map; the layer and its input beside a batch in the
    network (of ``batch`` bytes); a finished slab on its way to the disk; an output being written,
    while the allocator may keep what the batches took.
    """
    source_depth = min(math.ceil(depth * stack.shape[-1] / shape[-1]) + 2, stack.shape[-1])
    source = math.prod(stack.shape[:-1]) * source_depth
    layer = int(4.3 * math.prod(shape[:-1]) * depth)  # float32, with gaps between, as measured
    kept, filled = 0, source * stack.voxel_bytes + stack.unpacked
    if stack.layer > 1:  # copied into the slab, and kept for the next one
        planes = min(stack.layer, stack.shape[-1])
        kept = math.prod(stack.shape[:-1]) * planes * stack.dtype.itemsize
        filled = source * stack.dtype.itemsize + _layer_memory(stack) - kept
    reading = max(filled, source * (stack.dtype.itemsize + 4))  # and normalised
    finishing = 2 * source
    if shape != stack.shape:  # two copies of a slab and what is made of them, at either size
        longest = [max(pair) for pair in zip(stack.shape[:-1], shape[:-1], strict=True)]
        shrunk = source_depth > depth
        planes = 2 * source_depth + 1.5 * depth if shrunk else 5 * depth  # as measured
        resampling = int(4 * math.prod(longest) * planes)
        reading, finishing = max(reading, resampling), finishing + layer + resampling
    predicting = layer + max(reading, layer + batch, finishing)
    writing = batch + max(written)
    return max(LOADING * stack.loaded, stack.loaded + kept + max(predicting, writing))
