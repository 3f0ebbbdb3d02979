"""A stack opened by its file's ending: the format's reader, then channel, axes, spacing and box."""

import math
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, disk_errors
from utils.stacks.axes import given_axes, unclear, usual_axes
from utils.stacks.endings import ENDINGS, format_of, module_of
from utils.stacks.stack import FileArray, Stack

MANY_CHANNELS = 6  # more, of an image without z, may be planes: as tifffile writes for ImageJ


def open_stack(
    path: str | Path,
    *,
    channel: int | None = None,
    voxel_size: Sequence[float] | None = None,
    key: str | None = None,
    index: int | None = None,
    series: int | None = None,
    axes: str | None = None,
    crop: Sequence[tuple[int | None, int | None]] | None = None,
) -> Stack:
    """Open one stack or image for reading by slabs; UserError for one that cannot be.

    Args:
        path: a file of one of :data:`endings.ENDINGS`; a folder for Zarr, and for planes in TIFF.
        channel: which channel, from 0; needed where there are several.
        voxel_size: edge of a voxel along z, y, x (or y, x) in micrometres; overrides the file's.
        key: name of the array inside HDF5 or Zarr; needed where there are several.
        index: which time point, or which sample of a file of simulated volumes, from 0.
        series: which series of a TIFF, from 0, the largest if none is named; which scene of a CZI.
        axes: a letter for each of its axes, slowest first, where the file does not tell or is
            wrong, such as ``ZCYX``, or ``ZC2YX`` for pages of two channels in turn.
        crop: only this box, as :func:`crop_stack` takes it.
    """
    path, kind = check_input(path)
    if key is not None and kind not in ("hdf5", "zarr"):
        raise UserError(f"{path}: has one array only; --key {key!r} is for HDF5 and Zarr")
    if series is not None and kind not in ("tiff", "czi"):
        raise UserError(f"{path}: has no series; --series {series} is for TIFF and CZI")
    with ExitStack() as held:
        contents = held.enter_context(closing(module_of(path).contents(path)))
        array = contents.source(key if series is None else str(series))
        try:
            stack = _select(array, channel, voxel_size, index, axes)
        except UserError as error:
            if key is None and series is None and contents.note:
                raise UserError(f"{error}; {contents.note}") from error
            raise
        stack = stack if crop is None else crop_stack(stack, crop)
        return replace(stack, close=held.pop_all().close)


def list_stacks(path: str | Path) -> list[FileArray]:
    """Return what there is to read in a file, for ``--list``; UserError as :func:`open_stack`."""
    path, _ = check_input(path)
    with closing(module_of(path).contents(path)) as contents:
        return contents.entries()


def crop_stack(stack: Stack, ranges: Sequence[tuple[int | None, int | None]]) -> Stack:
    """Return the box ``ranges`` of ``stack``, cut where it is read; closing either closes the file.

    ``ranges`` are the first voxel and the one after the last along z, y, x (or y, x), from 0; None
    is the stack's own end. Raises UserError for a box that does not lie within the stack.
    """
    if len(ranges) != len(stack.shape):
        names = ",".join(f"{a}0:{a}1" for a in "zyx"[-len(stack.shape) :])
        given = f"has {len(stack.shape)} axes, but --crop {len(ranges)} ranges"
        raise UserError(f"{stack.path}: {given}; give {names}")
    starts = [first or 0 for first, _ in reversed(ranges)]
    stops = [n if b is None else b for (_, b), n in zip(reversed(ranges), stack.shape, strict=True)]
    for axis, start, stop, n in zip("xyz", starts, stops, stack.shape, strict=False):
        if not 0 <= start < stop <= n:
            where = f"--crop {start}:{stop} along {axis}"
            raise UserError(f"{stack.path}: {where}: must lie within 0:{n}")

    def part(box: tuple[slice, ...]) -> np.ndarray:
        moved = zip(box, starts, strict=True)
        return stack.part(tuple(slice(s.start + first, s.stop + first) for s, first in moved))

    shape = tuple(b - a for a, b in zip(starts, stops, strict=True))
    origin = tuple(a + b for a, b in zip(stack.origin, starts, strict=True))
    return replace(stack, shape=shape, origin=origin, place=stack.place.moved(starts), part=part)


def check_input(path: str | Path) -> tuple[Path, str]:
    """Return the path and its format; UserError unless it is there to be read in parts."""
    path = Path(path)
    with disk_errors(path):
        if not path.exists():
            raise UserError(f"{path}: no such file")
    kind = format_of(path)
    folder = kind == "zarr" or not path.name.lower().endswith(tuple(ENDINGS))
    if path.is_dir() != folder:
        what = "a file, where a folder is expected" if folder else "a folder, not a file"
        raise UserError(f"{path}: {what}")
    if not folder and not path.is_file():
        raise UserError(f"{path}: no regular file, so it cannot be read in parts")
    return path, kind


def _select(
    array: FileArray,
    channel: int | None,
    voxel_size: Sequence[float] | None,
    index: int | None,
    given: str | None,
) -> Stack:
    """Choose channel and time point, and lay the rest out as (X, Y, Z)."""
    path, shape, stored = array.path, array.shape, array.dtype
    if stored.kind not in "buif":
        raise UserError(f"{path}: holds {stored}, not grey values")
    short = np.dtype(np.uint8) if stored.kind == "b" else stored.newbyteorder("=")
    dtype = np.dtype(np.float32) if stored.itemsize > 2 else short
    if min(shape, default=0) < 1:
        raise UserError(f"{path}: holds no voxels: its shape is {shape}")
    if given is not None:
        array = _renamed(array, *given_axes(path, given, shape))
        shape = array.shape
    told = None if "Q" in (array.axes or "") and channel is not None else array.axes
    axes = told or usual_axes(path, shape)  # a TIFF's Q may be time, unless a channel is named
    if len(axes) != len(shape):
        raise unclear(path, f"its axes {axes} do not fit its shape {shape}", shape)
    pairs = zip(axes, shape, strict=True)
    spatial = "".join(a for a, n in pairs if a in "XY" or (n > 1 and a not in "CSTN"))
    if sorted(spatial) not in (["X", "Y"], ["X", "Y", "Z"]):
        raise unclear(path, f"its axes {axes} of lengths {shape} are not those of a stack", shape)
    chosen, letters = _choose(path, axes, shape, channel, index), "XYZ"[: len(spatial)]

    def part(box: tuple[slice, ...]) -> np.ndarray:
        places = dict(zip(letters, box, strict=True))
        where = tuple(chosen[k] if k in chosen else places[a] for k, a in enumerate(axes))
        return array.part(where).transpose([spatial.index(a) for a in letters])

    behind = math.prod(shape[max(axes.rfind(a) for a in "XYZ") + 1 :])  # channels of each voxel
    place = array.place.within(len(spatial))
    if voxel_size is not None:
        if len(voxel_size) != len(spatial):
            said = f"--voxel_size has {len(voxel_size)} numbers, the stack {len(spatial)} axes"
            raise UserError(f"{path}: {said}; give {'z,y,x'[-2 * len(spatial) + 1 :]}")
        place = place.resized(reversed(voxel_size))
    notes = (*array.notes, place.note())
    channels = (chosen[k] for k, a in enumerate(axes) if a in "CS" and shape[k] > 1)
    return Stack(
        path=path,
        shape=tuple(shape[axes.index(a)] for a in letters),
        dtype=dtype,
        spacing=place.spacing,
        axes=spatial,
        place=place,
        channel=next(channels, None),
        loaded=array.loaded,
        voxel_bytes=stored.itemsize * (behind + 1) + (stored != dtype) * dtype.itemsize,
        layer=1 if array.chunks is None else array.chunks[axes.index(letters[-1])],
        unpacked=2 * array.at_once * math.prod(array.chunks or (0,)) * stored.itemsize,
        origin=(0,) * len(letters),
        warning=lambda: "; ".join(filter(None, [*notes, array.warning()])) or None,
        part=part,
    )


def _choose(
    path: Path, axes: str, shape: tuple[int, ...], channel: int | None, index: int | None
) -> dict[int, int]:
    """Return the place along each axis that is none of space, 0 along those of length 1."""
    chosen = {k: 0 for k, n in enumerate(shape) if n == 1 and axes[k] not in "XY"}
    times = "samples" if "N" in axes else "time points"
    asked = (("CS", channel, "channel", "channels"), ("TN", index, "index", times))
    for letters, wanted, flag, noun in asked:
        many = [k for k, letter in enumerate(axes) if letter in letters and shape[k] > 1]
        if len(many) > 1:
            raise unclear(path, f"its axes {axes} of lengths {shape} cannot be told apart", shape)
        if not many and wanted:
            raise UserError(f"{path}: --{flag} {wanted}: the file has no {noun} to choose from")
        for k in many:
            every = f"0..{shape[k] - 1}"
            if wanted is None:
                advice = f"name one with --{flag} {every}"
                flat = dict(zip(axes, shape, strict=True)).get("Z", 1) == 1
                if flat and (axes[k] == "T" or shape[k] > MANY_CHANNELS):
                    planes = axes.translate(str.maketrans(f"{axes[k]}Z", f"Z{axes[k]}"))
                    advice += f", or --axes {planes} if they are planes"
                raise UserError(f"{path}: holds {shape[k]} {noun}; {advice}")
            if not 0 <= wanted < shape[k]:
                raise UserError(f"{path}: --{flag} {wanted}: the file's {noun} are {every}")
            chosen[k] = wanted
    return chosen


def _renamed(array: FileArray, axes: str, lengths: tuple[int, ...]) -> FileArray:
    """Return the array with other names for its axes, along which sizes and directions stay.

    Sizes without axes are those of Z, Y and X, in the order in which these stand now. With more
    lengths than axes the first axis, of pages, is cut into the first ones.
    """
    extra, spatial = len(lengths) - len(array.shape), [a for a in axes if a in "XYZ"]
    pairs = zip(spatial, "ZYX"[-len(spatial) :], strict=True)
    if not extra and len(array.axes or "") == len(lengths):
        pairs = zip(axes, array.axes or "", strict=True)
    moved = {new: old for new, old in pairs if new in "XYZ" and old in "XYZ"}

    def read(where: tuple[Any, ...]) -> np.ndarray:
        pages = np.arange(array.shape[0]).reshape(lengths[: extra + 1])[where[: extra + 1]]
        step = int(pages[1] - pages[0]) if pages.size > 1 else 1
        taken = slice(int(pages.min()), int(pages.max()) + 1, step) if pages.ndim else int(pages)
        return array.part((taken, *where[extra + 1 :]))

    chunks = array.chunks and (*array.chunks[:1], *(1,) * extra, *array.chunks[1:])
    cut = {"shape": lengths, "chunks": chunks, "read": read}
    return replace(array, axes=axes, place=array.place.renamed(moved), **cut)
