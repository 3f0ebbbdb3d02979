"""Zarr and OME-Zarr (https://ngff.openmicroscopy.org) by zarr-python: folders of chunks."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.stack import (
    FileArray,
    Source,
    StackLayout,
    chunks_of,
    fill_chunks,
    library_errors,
    micrometres,
    named,
)

CHUNK_NAME = re.compile(r"(c[./])?(\d+([./]\d+)*)")
"""File of a chunk below its array's folder, by either Zarr format's rules."""
COARSEST = 256
"""Longest edge, in voxels, of a pyramid's coarsest level: a viewer's first glance."""


def read(path: Path, key: str | None) -> Source:
    """Open an array of a folder, the finest level of an OME-Zarr image if none is named."""
    import zarr

    with library_errors(path):
        opened = zarr.open(str(path), mode="r")
        whole = isinstance(opened, zarr.Array)
        members = [("", opened)] if whole else list(opened.members(None))
        attributes = {} if whole else dict(opened.attrs)
        multiscale = (dict(attributes.get("ome", attributes)).get("multiscales") or [{}])[0]
        finest = multiscale["datasets"][0]["path"] if multiscale else None
    arrays = {
        name: FileArray.found(path, lambda item=item: item)
        for name, item in members
        if isinstance(item, zarr.Array)
    }
    array = arrays[named(path, arrays, None if whole else key or finest)]
    opened = array.load()
    with library_errors(path):
        if "pickle" in json.dumps(opened.metadata.to_dict(), default=str).lower():
            raise UserError(f"{path}: is stored as pickled objects, which are never loaded")
        own = opened.attrs.get("axes")
        axes, spacing, placement = _places(multiscale, opened.path)
    return Source(
        array,
        axes or (str(own).upper() if own else None),
        spacing,
        placement=placement,
        warning=lambda: _warn_of_absent(path, opened),
    )


def _places(
    multiscale: Mapping[str, Any], name: str
) -> tuple[str | None, dict[str, float], dict[str, Any]]:
    """Return axes, spacing and placement of an array by OME-NGFF's metadata, if there are any."""
    if not multiscale:
        return None, {}, {}
    entries = [a if isinstance(a, dict) else {"name": a} for a in multiscale["axes"]]
    own = [d for d in multiscale["datasets"] if d["path"].strip("/") == name.strip("/")]
    steps = own[0].get("coordinateTransformations", []) if own else []
    spacing = _lengths(steps, "scale", entries)
    try:
        place = _lengths(steps, "translation", entries)
    except (TypeError, ValueError):  # left out where it cannot be read, as in TIFF
        place = {}
    known = {axis: length for axis, length in place.items() if math.isfinite(length)}
    axes = "".join(str(entry["name"]) for entry in entries).upper()
    return axes, spacing, {"zarr translation": known} if known else {}


def _warn_of_absent(path: Path, array: Any) -> str | None:
    """Say how many chunks are absent, which Zarr reads as the fill value without a word.

    One listing of each folder; zarr's own ``nchunks_initialized`` takes the square of their number.
    """
    edges = array.shards or array.chunks
    counts = [math.ceil(n / edge) for n, edge in zip(array.shape, edges, strict=True)]
    folder = path / array.path
    present = sum(
        _is_chunk(below + name, counts)
        for place, _, names in os.walk(folder, followlinks=True)
        for below in ["" if place == str(folder) else os.path.relpath(place, folder) + "/"]
        for name in names
    )
    total = math.prod(counts)
    absent = total - present
    if not absent:
        return None
    of = f"the {total} chunks of its array {array.path}" if array.path else f"its {total} chunks"
    return (
        f"{path}: {absent} of {of} {'is' if absent == 1 else 'are'} absent and read as the fill "
        f"value, {array.fill_value}: right if nothing was to be stored there, wrong if the copy is "
        "not complete"
    )


def _is_chunk(name: str, counts: list[int]) -> bool:
    """Return whether a file below an array's folder is one of its chunks."""
    found = CHUNK_NAME.fullmatch(name.replace(os.sep, "/"))
    if not found:
        return False
    places = [int(number) for number in re.split("[./]", found[2])]
    return len(places) == len(counts) and all(map(int.__lt__, places, counts))


def _lengths(
    steps: Iterable[Mapping[str, Any]], kind: str, axes: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the first transformation of a kind, in micrometres by axis letter; empty for none."""
    found = [step[kind] for step in steps if step.get("type") == kind]
    return {
        str(axis["name"]).upper(): float(length) * micrometres(axis.get("unit", ""))
        for axis, length in zip(axes, found[0] if found else [], strict=bool(found))
    }


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write OME-Zarr 0.4: the stack and, down to :data:`COARSEST`, copies of half the size each.

    A copy's voxel holds the mean of its two voxels an axis, rounded for whole numbers, so that of a
    mask the majority remains. Axes of a single voxel are not halved.
    """
    import zarr

    axes = "YX" if len(layout.shape) == 2 else "ZYX"
    pyramid = _pyramid(layout.shape[::-1])
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.attrs["multiscales"] = [_multiscale(axes, pyramid, layout)]
    levels = [
        group.create_array(
            str(level),
            shape=shape,
            dtype=layout.dtype,
            chunks=chunks_of(shape, axes),
            chunk_key_encoding={"name": "v2", "separator": "/"},
            config={"write_empty_chunks": True},  # so that one that is absent was lost
        )
        for level, (shape, _) in enumerate(pyramid)
    ]
    fill_chunks(levels[0], axes, slabs)
    for fine, coarse in itertools.pairwise(levels):
        _halve(fine, coarse)


def _pyramid(shape: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return each level's shape, and how many of the finest voxels an axis one of it covers."""
    factors = (1,) * len(shape)
    levels = [(shape, factors)]
    while max(shape) > COARSEST:
        factors = tuple(f if n == 1 else 2 * f for f, n in zip(factors, shape, strict=True))
        shape = tuple((n + 1) // 2 for n in shape)
        levels.append((shape, factors))
    return levels


def _multiscale(
    axes: str, pyramid: list[tuple[tuple[int, ...], tuple[int, ...]]], layout: StackLayout
) -> dict[str, Any]:
    """Return the metadata of a pyramid, https://ngff.openmicroscopy.org/0.4.

    Coordinates are those of voxels' centres: each level's first voxel lies in the middle of the
    finest voxels that it stands for, hence a translation; another one where a box was cut out.
    """
    sizes = (layout.spacing or (1.0,) * len(axes))[::-1]
    own = layout.placement.get("zarr translation", {}) if layout.spacing else {}
    first = [own.get(a, 0.0) + way for a, way in zip(axes, layout.shift[::-1], strict=True)]
    unit = {"unit": "micrometer"} if layout.spacing else {}
    datasets = []
    for level, (_, factors) in enumerate(pyramid):
        pairs = list(zip(factors, sizes, strict=True))
        steps = [{"type": "scale", "scale": [float(f * size) for f, size in pairs]}]
        shift = [
            float(place + (f - 1) / 2 * size) for place, (f, size) in zip(first, pairs, strict=True)
        ]
        if level or any(shift):
            steps.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    return {
        "version": "0.4",
        "name": "data",
        "type": "mean",
        "axes": [{"name": a.lower(), "type": "space", **unit} for a in axes],
        "datasets": datasets,
    }


def _halve(fine: Any, coarse: Any) -> None:
    """Fill the coarse array from the fine one, chunk by chunk."""
    factors = [1 if n == 1 else 2 for n in fine.shape]
    starts = [range(0, n, edge) for n, edge in zip(coarse.shape, coarse.chunks, strict=True)]
    for corner in itertools.product(*starts):
        box = [slice(a, a + edge) for a, edge in zip(corner, coarse.chunks, strict=True)]
        source = [slice(f * b.start, f * b.stop) for f, b in zip(factors, box, strict=True)]
        coarse[tuple(box)] = _means(fine[tuple(source)], factors)


def _means(block: np.ndarray, factors: list[int]) -> np.ndarray:
    """Return the means of boxes of ``factors`` voxels; the border is repeated to fill the last."""
    block = np.pad(
        block, [(0, -n % f) for n, f in zip(block.shape, factors, strict=True)], mode="edge"
    )
    split = [k for n, f in zip(block.shape, factors, strict=True) for k in (n // f, f)]
    means = block.reshape(split).mean(axis=tuple(range(1, len(split), 2)), dtype=np.float32)
    return means if block.dtype.kind == "f" else np.floor(means + 0.5).astype(block.dtype)
