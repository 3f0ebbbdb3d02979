"""A stack opened by its file's ending: the format's reader, then the channel, axes and spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.errors import UserError, disk_errors
from utils.stacks.axes import REMEDY, as_planes, example, given_axes, usual_axes
from utils.stacks.endings import ENDINGS, FORMATS, format_of
from utils.stacks.place import Place
from utils.stacks.stack import Contents, Entry, Source, Stack, closed_if_it_fails


def open_stack(
    path: str | Path,
    *,
    channel: int | None = None,
    voxel_size: Sequence[float] | None = None,
    key: str | None = None,
    index: int | None = None,
    series: int | None = None,
    axes: str | None = None,
) -> Stack:
    """Open one stack or image for reading by slabs.

    Args:
        path: a file of one of :data:`formats.ENDINGS`; a folder for Zarr and OME-Zarr.
        channel: which channel, from 0; needed where there are several.
        voxel_size: edge of a voxel along z, y, x (or y, x) in micrometres; overrides the file's.
        key: name of the array inside HDF5 or Zarr; needed where there are several.
        index: which time point, or which sample of a file of simulated volumes, from 0.
        series: which series of a TIFF, from 0; the largest if none is named.
        axes: a letter for each axis of the file's array, slowest first, such as ``ZCYX``, where the
            file does not tell or is wrong.

    Raises:
        UserError: for a file that is missing, damaged, of an unknown format or without what was
            asked for.
    """
    path, kind = check_input(path)
    if key is not None and kind not in ("hdf5", "zarr"):
        raise UserError(f"{path}: has one array only; --key {key!r} is for HDF5 and Zarr")
    if series is not None and kind != "tiff":
        raise UserError(f"{path}: has no series; --series {series} is for TIFF")
    contents = _contents(path, kind)
    with closed_if_it_fails(contents):
        source = contents.source(key if series is None else str(series))
        try:
            stack = _select(path, source, channel, voxel_size, index, axes)
        except UserError as error:
            if key is None and series is None and contents.unasked:
                raise UserError(f"{error}; {contents.unasked}") from error
            raise
        return replace(stack, close=contents.close)


def list_stacks(path: str | Path) -> list[Entry]:
    """Return what there is to read in a file, for ``--list``; UserError as :func:`open_stack`."""
    path, kind = check_input(path)
    with closing(_contents(path, kind)) as contents:
        return contents.entries()


def _contents(path: Path, kind: str) -> Contents:
    """Open a file, whether its format holds several arrays or one."""
    if hasattr(FORMATS[kind], "contents"):
        return FORMATS[kind].contents(path)
    source = FORMATS[kind].read(path)
    only = {"": source.array}
    return Contents(path, only, lambda name: only, lambda name: source)


def check_input(path: str | Path) -> tuple[Path, str]:
    """Return the path and its format; UserError unless it is there to be read in parts."""
    path = Path(path)
    with disk_errors(path):
        if not path.exists():
            raise UserError(f"{path}: no such file")
        planes = path.is_dir() and not path.name.lower().endswith(tuple(ENDINGS))
    kind = format_of(path)
    folder = kind == "zarr" or planes
    if path.is_dir() != folder:
        what = "a file, where a folder is expected" if folder else "a folder, not a file"
        raise UserError(f"{path}: {what}")
    if not folder and not path.is_file():
        raise UserError(f"{path}: no regular file, so it cannot be read in parts")
    return path, kind


def _select(
    path: Path,
    source: Source,
    channel: int | None,
    voxel_size: Sequence[float] | None,
    index: int | None,
    given: str | None,
) -> Stack:
    """Choose channel and time point, and lay the rest out as (X, Y, Z)."""
    dtype = _working_dtype(path, source.array.dtype)
    shape = source.array.shape
    if min(shape, default=0) < 1:
        raise UserError(f"{path}: holds no voxels: its shape is {shape}")
    if given is not None:
        source = _renamed(source, given_axes(path, given, shape))
    axes = source.axes or usual_axes(path, shape)
    if len(axes) != len(shape):
        raise UserError(
            f"{path}: its axes {axes} do not fit its shape {shape}; {REMEDY} {example(shape)}"
        )
    chosen = {k: 0 for k, n in enumerate(shape) if n == 1 and axes[k] not in "XY"}
    asked = {"CS": (channel, "channel", "channels"), "TN": (index, "index", "time points")}
    for letters, (wanted, flag, what) in asked.items():
        found = [k for k, letter in enumerate(axes) if letter in letters]
        many = [k for k in found if shape[k] > 1]
        if len(many) > 1:
            told = f"its axes {axes} of lengths {shape} cannot be told apart"
            raise UserError(f"{path}: {told}; {REMEDY} {example(shape)}")
        noun = "samples" if "N" in axes else what
        if many:
            planes = as_planes(axes, shape) if "T" in letters else None
            other = f", or --axes {planes} if they are planes" if planes else ""
            chosen[many[0]] = _pick(path, wanted, shape[many[0]], flag, noun, other)
        elif wanted:
            raise UserError(f"{path}: --{flag} {wanted}: the file has no {noun} to choose from")
    spatial = "".join(a for k, a in enumerate(axes) if k not in chosen)
    if sorted(spatial) not in (["X", "Y"], ["X", "Y", "Z"]):
        told = f"its axes {axes} of lengths {shape} are not those of a stack"
        raise UserError(f"{path}: {told}; {REMEDY} {example(shape)}")
    order = [spatial.index(a) for a in "XYZ" if a in spatial]
    lengths = [shape[axes.index(a)] for a in "XYZ" if a in spatial]
    last = axes.index("Z" if "Z" in spatial else "Y")

    def part(box: tuple[slice, ...]) -> np.ndarray:
        places = dict(zip("XYZ", box, strict=False))
        where = tuple(chosen[k] if k in chosen else places[a] for k, a in enumerate(axes))
        return source.array.part(where).transpose(order)

    stored = source.array.dtype
    behind = math.prod(shape[max(axes.rfind(a) for a in "XYZ") + 1 :])  # channels of each voxel
    place = _place(path, voxel_size, source, spatial)
    notes = [*source.notes, *filter(None, [place.note()])]
    channel_axis = next((k for k, a in enumerate(axes) if a in "CS" and shape[k] > 1), None)
    return Stack(
        path=path,
        shape=tuple(lengths),
        dtype=dtype,
        spacing=place.spacing,
        axes=spatial,
        channel=None if channel_axis is None else chosen[channel_axis],
        loaded=source.loaded,
        voxel_bytes=stored.itemsize * (behind + 1) + (stored != dtype) * dtype.itemsize,
        layer=1 if source.chunks is None else source.chunks[last],
        unpacked=2 * source.at_once * math.prod(source.chunks or (0,)) * stored.itemsize,
        place=place,
        origin=(0,) * len(lengths),
        warning=lambda: "; ".join([*notes, *filter(None, [source.warning()])]) or None,
        part=part,
    )


def _working_dtype(path: Path, dtype: np.dtype) -> np.dtype:
    """Return the dtype to compute with: short ones as they are, others as float32."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "uif":
        raise UserError(f"{path}: holds {dtype}, not grey values")
    if dtype.itemsize > 2:
        return np.dtype(np.float32)
    return dtype.newbyteorder("=")


def _pick(path: Path, wanted: int | None, count: int, flag: str, what: str, other: str) -> int:
    if wanted is None:
        advice = f"name one with --{flag} 0..{count - 1}{other}"
        raise UserError(f"{path}: holds {count} {what}; {advice}")
    if not 0 <= wanted < count:
        raise UserError(f"{path}: --{flag} {wanted}: the file's {what} are 0..{count - 1}")
    return wanted


def _renamed(source: Source, axes: str) -> Source:
    """Return the source with other names for its axes, along which sizes and directions stay.

    Sizes without axes are those of Z, Y and X, in the order in which these stand now.
    """
    if source.axes and len(source.axes) == len(source.array.shape):
        pairs = zip(axes, source.axes, strict=True)
    else:
        spatial = [a for a in axes if a in "XYZ"]
        pairs = zip(spatial, "ZYX"[-len(spatial) :], strict=True)
    moved = {new: old for new, old in pairs if new in "XYZ" and old in "XYZ"}
    return replace(source, axes=axes, place=source.place.renamed(moved))


def _place(path: Path, voxel_size: Sequence[float] | None, source: Source, spatial: str) -> Place:
    """Return where the voxels stand: as the file says, of the user's size if there is one."""
    place = source.place.within(len(spatial))
    if voxel_size is None:
        return place
    if len(voxel_size) != len(spatial):
        raise UserError(
            f"{path}: has {len(spatial)} axes in space, but --voxel_size has {len(voxel_size)} "
            f"numbers; give {'z,y,x'[-2 * len(spatial) + 1 :]}"
        )
    return place.resized(reversed(voxel_size))
