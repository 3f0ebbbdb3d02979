"""Stacks larger than memory: planned to fit, predicted layer by layer, picked up where interrupted.

While it is at work, the folder ``NAME.partial`` beside an output ``NAME`` holds the planes that are
done, as plain arrays, and a record of what they were made from; the outputs are written from it at
the end. Arrays are (X, Y, Z) or (X, Y) as in ``utils.stacks``.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from torch import nn

from utils.data.normalize import PercentileNormalizer
from utils.errors import UserError
from utils.prediction.intensities import fit_slabs
from utils.prediction.sliding_window import Windows, predict_slabs, window_within
from utils.replacing import replacing
from utils.stacks import Stack, StackLayout, format_of, write_stack
from utils.stacks.resampling import Resampling
from utils.stacks.stack import CHUNK_PLANES

LARGEST_BATCH = 4
"""Windows at once if memory allows; more gain nothing on a processor."""
SMALLEST_DEPTH = 16
"""Planes below which a window is not flattened to save memory."""
FEATURE_MAPS, MORE_MAPS = 7, 12
"""Maps of ``start_channels`` values alive at once in a window, at most.

Measured as the growth of the peak memory, in both precisions: 3.1 to 6.0 in U-Nets of 4 to 16
channels, residual or not; up to 9.0 in a stack of two, and 12.0 in one that works on blocks of
voxels, to which the second number belongs.
"""
WINDOW_BYTES = 16
"""Bytes a voxel of a window beside them: input, logits, probabilities and a copy, float32."""
OVERHEAD = 100 << 20
"""Bytes for libraries that are loaded on the way, and for what the allocators keep."""
WRITTEN_WHOLE = {"nrrd": 2.25, "nifti": 1.25}
"""Formats that are written as a whole, and how often their voxels are then in memory."""
READ_BYTES = 16 << 20
"""Size of the slabs in which a stack is read for its percentiles, and an output is written."""
DTYPES = {"mask": np.dtype(np.uint8), "probabilities": np.dtype(np.float32)}
"""The outputs that there can be."""


@dataclass(frozen=True)
class Plan:
    """How a stack is to be predicted."""

    resampling: Resampling | None
    """From the stack to the voxels that the network sees; None if they are the stack's own."""
    shape: tuple[int, ...]
    """Of what the network sees."""
    windows: Windows
    memory: int
    """Estimated peak of the whole process in bytes."""


def available_memory() -> int:
    """Return the bytes that this process can still take, in a container's limit as well."""
    free = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        entries = (group / "memory.stat").read_text().split()
        used -= int(entries[entries.index("inactive_file") + 1])  # a cache that gives way
    except (OSError, ValueError):  # no such limit
        return free
    return min(free, max(0, limit - used))


def resident_memory() -> int:
    """Return the bytes of main memory that this process takes now."""
    return psutil.Process().memory_info().rss


def values_alive(channels: int, *, stem_stride: int, dims: int, stacks: int) -> float:
    """Return the values a voxel of a window that a network holds at once, at most.

    Args:
        channels: of the network at full resolution.
        stem_stride: edge of the blocks of voxels that it works on.
        dims: axes of its windows.
        stacks: U-Nets in a row.
    """
    maps = FEATURE_MAPS if stem_stride == stacks == 1 else MORE_MAPS
    return maps * channels / stem_stride**dims


def check_loading(stack: Stack, present: int, limit: int) -> None:
    """Raise UserError if reading the file, which works only as a whole, exceeds ``limit``.

    ``present`` is what the process takes before.
    """
    needed = present + OVERHEAD + 3 * stack.loaded
    if stack.loaded and needed > limit:
        raise UserError(
            f"{stack.path}: is of a format that is read as a whole, which needs about "
            f"{needed / 1e9:.1f} GB, and {limit / 1e9:.1f} GB are allowed; raise --memory or save "
            "it as TIFF or OME-Zarr"
        )


def writing_memory(stack: Stack, name: str, path: Path) -> int:
    """Return the bytes that an output (``mask`` or ``probabilities``) takes while it is written."""
    itemsize = DTYPES[name].itemsize
    copies = WRITTEN_WHOLE.get(format_of(path))
    if copies:
        return int(copies * math.prod(stack.shape) * itemsize)
    return 3 * CHUNK_PLANES * math.prod(stack.shape[:-1]) * itemsize + 3 * READ_BYTES


def make_plan(
    stack: Stack,
    shape: tuple[int, ...],
    windows: Windows,
    *,
    values: float,
    outputs: Mapping[str, Path],
    present: int,
    limit: int,
    fixed_batch: bool = False,
) -> Plan:
    """Return a plan whose estimated peak stays within ``limit`` bytes.

    Batches are made smaller first, then windows flatter, down to :data:`SMALLEST_DEPTH` planes.

    Args:
        stack: what to predict.
        shape: its shape after resampling to the network's voxels.
        windows: as large as they may be.
        values: of the network, from :func:`values_alive`.
        outputs: ``mask`` and, if wanted, ``probabilities``, and where they will stand.
        present: bytes that the process takes before anything of the stack is read.
        limit: bytes for the whole process.
        fixed_batch: leave the batch size as it is.

    Raises:
        UserError: if nothing fits; it says what the smallest plan takes.
    """
    resampling = None if shape == stack.shape else Resampling.between(stack.shape, shape)
    least = 0
    for depth in _depths(window_within(shape, windows.edges)[-1]):
        for batch_size in [windows.batch_size] if fixed_batch else _halves(windows.batch_size):
            edges = window_within(shape, (*windows.edges[:-1], depth))
            tried = replace(windows, edges=edges, batch_size=batch_size)
            least = present + estimate_memory(stack, shape, tried, values, outputs)
            if least <= limit:
                return Plan(resampling, shape, tried, least)
    raise UserError(
        f"{stack.path}: needs about {least / 1e9:.1f} GB, and {limit / 1e9:.1f} GB are allowed; "
        "raise --memory, lower --window or cut the stack"
    )


def estimate_memory(
    stack: Stack,
    shape: tuple[int, ...],
    windows: Windows,
    values: float,
    outputs: Mapping[str, Path],
) -> int:
    """Return the bytes that the work adds to the process at most.

    The largest of what its stages hold: a slab being read beside the layer of the map, the layer
    and its input beside a batch in the network, a finished slab being written down, an output being
    written.
    """
    depth = windows.edges[-1]
    plane, source_plane = math.prod(shape[:-1]), math.prod(stack.shape[:-1])
    source_depth = min(math.ceil(depth * stack.shape[-1] / shape[-1]) + 2, stack.shape[-1])
    layer = slab = 4 * plane * depth
    source = source_plane * source_depth
    there = back = 0
    if shape != stack.shape:
        deep, source_deep = (*shape[:-1], depth), (*stack.shape[:-1], source_depth)
        there = _resampling_memory(source_deep, deep)
        back = layer + _resampling_memory(deep, source_deep)
    batch = windows.batch_size * math.prod(windows.edges)
    itemsize = 2 if windows.precision == "bf16" else 4
    extra = WINDOW_BYTES if windows.flips else 0
    features = int(batch * (values * itemsize + WINDOW_BYTES + extra))
    copied = stack.voxel_bytes - stack.dtype.itemsize  # in the file's pages or before a conversion
    read = source * (stack.dtype.itemsize + max(copied, 4))
    stages = [
        layer + max(read, there),
        layer + slab + features,
        layer + back + 2 * source,
        *(writing_memory(stack, name, path) for name, path in outputs.items()),
    ]
    return OVERHEAD + max(3 * stack.loaded, stack.loaded + max(stages))


def _resampling_memory(old: tuple[int, ...], new: tuple[int, ...]) -> int:
    """Return the bytes of a slab on its way to another shape: each axis copies before it makes."""
    shape, most = list(old), 0
    for axis, length in enumerate(new):
        before = math.prod(shape)
        shape[axis] = length
        most = max(most, 2 * before + math.prod(shape))
    return 4 * most


def _depths(depth: int) -> list[int]:
    """Return ``depth`` and its halves, whole multiples of 8, down to the smallest."""
    depths = [depth]
    while depths[-1] // 2 >= SMALLEST_DEPTH:
        depths.append(depths[-1] // 16 * 8)
    return depths


def _halves(number: int) -> list[int]:
    return [number >> k for k in range(number.bit_length())]


def measure_percentiles(stack: Stack, normalizer: PercentileNormalizer) -> tuple[float, float]:
    """Return the normaliser's percentiles of the whole stack, read by slabs.

    Raises UserError for values that are not finite, and for a stack that cannot be read.
    """
    planes = _planes_at_once(stack.shape, 4)

    def slabs() -> Iterator[np.ndarray]:
        for start in range(0, stack.shape[-1], planes):
            yield stack.read(start, min(start + planes, stack.shape[-1]))

    try:
        return fit_slabs(normalizer, slabs, stack.dtype)
    except UserError as error:
        raise UserError(f"{stack.path}: {error}") from error


def _planes_at_once(shape: tuple[int, ...], itemsize: int) -> int:
    return max(1, READ_BYTES // (math.prod(shape[:-1]) * itemsize))


def write_empty(stack: Stack, outputs: Mapping[str, Path]) -> None:
    """Write outputs that are zero everywhere."""
    for name, path in outputs.items():
        planes = _planes_at_once(stack.shape, DTYPES[name].itemsize)
        slabs = (
            np.zeros((*stack.shape[:-1], min(planes, stack.shape[-1] - start)), DTYPES[name])
            for start in range(0, stack.shape[-1], planes)
        )
        write_stack(path, slabs, StackLayout.like(stack, DTYPES[name]))


def predict_stack(
    model: nn.Module,
    stack: Stack,
    normalizer: PercentileNormalizer,
    percentiles: tuple[float, float],
    plan: Plan,
    *,
    first: int = 0,
    passed: Callable[[int], object] = lambda count: None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (start, probabilities) of the stack's own planes, in order from ``first``.

    As :func:`utils.prediction.sliding_window.predict_slabs`, with the stack normalised by
    ``percentiles``, resampled to the network's voxels and the map resampled back.
    """

    def read(start: int, stop: int) -> np.ndarray:
        return normalizer.apply(stack.read(start, stop), *percentiles)

    if plan.resampling is None:
        yield from predict_slabs(model, read, stack.shape, plan.windows, first=first, passed=passed)
        return
    there = plan.resampling
    back = Resampling.between(there.target, there.source)

    def read_scaled(start: int, stop: int) -> np.ndarray:
        begin, end = there.needed(start, stop)
        return there.apply(read(begin, end), begin, start, stop)

    begin = back.needed(first, stack.shape[-1])[0]
    slabs = predict_slabs(model, read_scaled, plan.shape, plan.windows, first=begin, passed=passed)
    yield from back.stream(slabs, first)


def predict_files(
    model: nn.Module,
    stack: Stack,
    normalizer: PercentileNormalizer,
    percentiles: tuple[float, float],
    plan: Plan,
    outputs: Mapping[str, Path],
    *,
    threshold: float,
    recipe: Mapping[str, Any],
    place: Path | None = None,
    begun: Callable[[int], object] = lambda planes: None,
    passed: Callable[[int], object] = lambda count: None,
) -> None:
    """Predict a stack and write its outputs, going on where an earlier attempt stopped.

    Args:
        model: network with one output channel.
        stack: what to predict.
        normalizer: the rule by which the network's training data were scaled.
        percentiles: the stack's, from :func:`measure_percentiles`.
        plan: from :func:`make_plan`.
        outputs: ``mask`` and, if wanted, ``probabilities``, and where they go.
        threshold: probability from which a voxel belongs to the mask.
        recipe: plain JSON that tells all that the outputs depend on; other planes are not taken up.
        place: output beside whose name the planes that are done are kept; the mask if None.
        begun: told how many planes are there already.
        passed: told the number of windows done after each batch.

    Raises:
        UserError: for a stack that cannot be read, or a disk that cannot be written.
    """
    place = place or outputs["mask"]
    with open_staging(place, stack.shape, tuple(outputs), recipe) as staging:
        first = staging.done
        begun(first)
        if first < stack.shape[-1]:
            for start, slab in predict_stack(
                model, stack, normalizer, percentiles, plan, first=first, passed=passed
            ):
                staging.write(start, slab, threshold)
        for name, path in outputs.items():
            write_stack(path, staging.slabs(name), StackLayout.like(stack, DTYPES[name]))


@dataclass(frozen=True)
class Staging:
    """The folder of the planes that are done; made by :func:`open_staging`."""

    folder: Path
    shape: tuple[int, ...]
    names: tuple[str, ...]
    resumed: bool
    """Whether planes of an earlier attempt were found."""

    @property
    def done(self) -> int:
        """Planes (last axis) that need not be predicted again."""
        record = self.folder / "done.json"
        return json.loads(record.read_text()) if record.exists() else 0

    def write(self, start: int, probabilities: np.ndarray, threshold: float) -> None:
        """Put down a slab of each output, on the disk before it counts as done."""
        for name in self.names:
            slab = probabilities >= threshold if name == "mask" else probabilities
            with open(self._array(name), "r+b") as file:
                file.seek(start * self._plane_bytes(name))
                file.write(np.ascontiguousarray(slab.T, DTYPES[name]))
                file.flush()
                os.fsync(file.fileno())
        with replacing(self.folder / "done.json") as path:
            path.write_text(str(start + probabilities.shape[-1]))

    def slabs(self, name: str) -> Iterator[np.ndarray]:
        """Yield what was put down for one output, (X, Y, n), from its first plane on."""
        planes = _planes_at_once(self.shape, DTYPES[name].itemsize)
        for start in range(0, self.shape[-1], planes):
            count = min(planes, self.shape[-1] - start)
            flat = np.fromfile(
                self._array(name),
                DTYPES[name],
                count * math.prod(self.shape[:-1]),
                offset=start * self._plane_bytes(name),
            )
            yield flat.reshape(count, *self.shape[-2::-1]).T

    def _array(self, name: str) -> Path:
        return self.folder / f"{name}.raw"

    def _plane_bytes(self, name: str) -> int:
        return math.prod(self.shape[:-1]) * DTYPES[name].itemsize


@contextmanager
def open_staging(
    output: Path, shape: tuple[int, ...], names: tuple[str, ...], recipe: Mapping[str, Any]
) -> Iterator[Staging]:
    """Open the folder ``output.partial`` for this process alone; remove it when all went well.

    Planes found there are kept if they were made by the same ``recipe`` (plain JSON), which must
    tell everything that they depend on. Raises UserError if another process is at work there, or
    if the disk has no room or cannot be written.
    """
    folder = output.with_name(output.name + ".partial")
    try:
        folder.mkdir(exist_ok=True)
        with open(folder / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{output}: another process is writing it") from error
            resumed = _prepare(folder, output, shape, names, dict(recipe))
            yield Staging(folder, shape, names, resumed)
            shutil.rmtree(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error


def _prepare(
    folder: Path,
    output: Path,
    shape: tuple[int, ...],
    names: tuple[str, ...],
    recipe: dict[str, Any],
) -> bool:
    """Make the arrays, or leave those of the same recipe; return whether there were any."""
    text = json.dumps({**recipe, "shape": shape, "outputs": names}, sort_keys=True)
    record = folder / "recipe.json"
    if record.exists() and record.read_text() == text:
        return (folder / "done.json").exists()
    for left in folder.iterdir():
        if left.name != "lock":
            left.unlink()
    sizes = {name: math.prod(shape) * DTYPES[name].itemsize for name in names}
    free = shutil.disk_usage(folder).free
    if 2 * sum(sizes.values()) > free:
        shutil.rmtree(folder)
        raise UserError(
            f"{output}: needs up to {2 * sum(sizes.values()) / 1e9:.1f} GB of disk while it is "
            f"made, and {free / 1e9:.1f} GB are free"
        )
    for name, size in sizes.items():
        with open(folder / f"{name}.raw", "wb") as file:
            file.truncate(size)
    with replacing(record) as path:
        path.write_text(text)
    return False
