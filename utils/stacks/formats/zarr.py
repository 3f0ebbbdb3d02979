"""Zarr and OME-Zarr (https://ngff.openmicroscopy.org) by zarr-python: folders of chunks."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.axes import NAMES, axis_letters
from utils.stacks.place import Place
from utils.stacks.stack import (
    Entry,
    FileArray,
    Source,
    StackLayout,
    chunks_of,
    fill_chunks,
    library_errors,
    named,
)

MOST_AT_ONCE, BYTES_AT_ONCE = 10, 32 << 20
"""Chunks that are unpacked at a time, and their bytes at most, but for a single larger one."""
NAMED_BY = ("axes", "_ARRAY_DIMENSIONS", "axis_names")
"""Attributes of an array in which the names of its axes may stand."""


def read(path: Path, key: str | None) -> Source:
    """Open an array of a folder, the finest level of an OME-Zarr image if none is named.

    The folder may lie within another one; ``key`` may be a group that holds one image.
    """
    arrays, images = _contents(path)
    return _source(path, arrays, images, _chosen(path, arrays, images, key))


def entries(path: Path) -> list[Entry]:
    """Return the images of a folder, those of labels too, or its arrays where it has no images."""
    arrays, images = _contents(path)
    finest = [_finest(group, image) for group, image in images.items()]
    if not (finest or arrays):
        named(path, arrays, None)
    alone = _candidates(arrays, images, "")
    return [
        Entry.of(_source(path, arrays, images, name), name, chosen=alone == [name])
        for name in finest or arrays
    ]


def _contents(path: Path) -> tuple[dict[str, FileArray], dict[str, Mapping[str, Any]]]:
    """Return the arrays by name, and what OME says of images by the name of their group."""
    import zarr

    with library_errors(path):
        opened = zarr.open(str(path), mode="r")
        whole = isinstance(opened, zarr.Array)
        members = [("", opened), *([] if whole else opened.members(None))]
        images = {
            name: image
            for name, item in members
            if isinstance(item, zarr.Group) and (image := _image(item))
        }
    arrays = {
        name: FileArray.found(path, lambda item=item: item)
        for name, item in members
        if isinstance(item, zarr.Array) and (item.ndim > 1 or whole)
    }
    for group, image in images.items():
        if _finest(group, image) not in arrays:
            raise UserError(
                f"{path}: lacks the array {_finest(group, image)}, the full resolution of an image"
            )
    return arrays, images


def _image(group: Any) -> Mapping[str, Any] | None:
    """Return a group's first multiscale image, OME-NGFF 0.1 to 0.5; None if it is none."""
    attributes = dict(group.attrs)
    found = dict(attributes.get("ome", attributes)).get("multiscales") or [None]
    return found[0] if found[0] and found[0].get("datasets") else None


def _finest(group: str, image: Mapping[str, Any]) -> str:
    """Return the name of the array that has an image's full resolution, by its group's name."""
    return f"{group}/{str(image['datasets'][0]['path']).strip('/')}".lstrip("/")


def _candidates(
    arrays: Mapping[str, FileArray], images: Mapping[str, Mapping[str, Any]], group: str
) -> list[str]:
    """Return what may be meant by a group: its own image, those below but labels, or its arrays."""
    if group in images:
        return [_finest(group, images[group])]
    prefix = f"{group}/" if group else ""
    below = [name for name in images if name.startswith(prefix)]
    kept = [name for name in below if "labels" not in name[len(prefix) :].split("/")] or below
    finest = [_finest(name, images[name]) for name in kept]
    return finest or [name for name in arrays if name.startswith(prefix) or not name]


def _chosen(
    path: Path,
    arrays: Mapping[str, FileArray],
    images: Mapping[str, Mapping[str, Any]],
    key: str | None,
) -> str:
    """Return the name of the array that ``key`` means; UserError if there are none or several."""
    wanted = (key or "").strip("/")
    if wanted in arrays:
        return wanted
    names = _candidates(arrays, images, wanted)
    if key is not None and not names:
        return named(path, arrays, key)
    return named(path, {name: arrays[name] for name in names}, None)


def _source(
    path: Path,
    arrays: Mapping[str, FileArray],
    images: Mapping[str, Mapping[str, Any]],
    name: str,
) -> Source:
    """Return an array with what its image, or its own attributes, say."""
    opened = arrays[name].load()
    with library_errors(path):
        if "pickle" in json.dumps(opened.metadata.to_dict(), default=str).lower():
            raise UserError(f"{path}: is stored as pickled objects, which are never loaded")
        axes, place = _places(_levels(path, images, name), len(opened.shape))
        own = [opened.attrs.get(attribute) for attribute in NAMED_BY]
        own = [*own, getattr(opened.metadata, "dimension_names", None)]
        told = (axis_letters(names) for names in own if names)
        axes = axes or next((letters for letters in told if letters), None)
    at_once = max(1, min(MOST_AT_ONCE, BYTES_AT_ONCE // max(1, _chunk_bytes(opened))))
    return Source(
        replace(arrays[name], load=lambda: _FewAtOnce(opened, at_once)),
        axes,
        place=place,
        warning=lambda: _warn_of_absent(path, opened),
        at_once=at_once,
        chunks=opened.chunks,
    )


@dataclass(frozen=True)
class _FewAtOnce:
    """An array of which no more chunks are unpacked at a time than memory is counted for."""

    array: Any
    count: int

    def __getitem__(self, where: Any) -> Any:
        import zarr

        with zarr.config.set({"async.concurrency": self.count}):
            return self.array[where]


def _chunk_bytes(array: Any) -> int:
    return math.prod(array.chunks) * array.dtype.itemsize


def _levels(
    path: Path, images: Mapping[str, Mapping[str, Any]], name: str
) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """Return the image that an array is a level of, and what it says of that level.

    The image may be that of a folder in which ``path`` lies.
    """
    import zarr

    known = dict(images)
    levels = {place: (image, name) for place, image in known.items()}
    for folder in path.absolute().parents:
        if not any(p.suffix.lower() == ".zarr" for p in (folder, *folder.parents)):
            break
        if (folder / ".zgroup").is_file() or (folder / "zarr.json").is_file():
            image = _image(zarr.open_group(str(folder), mode="r"))
            inner = f"{path.absolute().relative_to(folder).as_posix()}/{name}".strip("/")
            if image:
                levels[f"/{folder}"] = image, inner
    for place, (image, inner) in levels.items():
        group = "" if place.startswith("/") else place
        for level in image["datasets"]:
            if f"{group}/{str(level['path']).strip('/')}".lstrip("/") == inner:
                return image, level
    return None


def _places(
    found: tuple[Mapping[str, Any], Mapping[str, Any]] | None, count: int
) -> tuple[str | None, Place | None]:
    """Return axes and place of an array by OME-NGFF's metadata, if there are any.

    The image's own transformations come after those of the level (0.4, multiscales metadata). Axes
    are T, C, Z, Y, X in 0.1 and 0.2, names in 0.3, and have types and units since 0.4.
    """
    if found is None:
        return None, None
    image, level = found
    named_axes = image.get("axes") or list("tczyx"[-count:])
    entries = [a if isinstance(a, dict) else {"name": a} for a in named_axes]
    names = [e["name"] if str(e["name"]).lower() in NAMES else e.get("type", "") for e in entries]
    axes = axis_letters(names) if len(names) > 1 else None
    steps = [s for of in (level, image) for s in of.get("coordinateTransformations") or []]
    scale, first = np.ones(len(entries)), np.zeros(len(entries))
    for step in steps:
        if step["type"] == "scale":
            factors = np.array(step["scale"], float)
            scale, first = scale * factors, first * factors
        elif step["type"] == "translation":
            first = first + np.array(step["translation"], float)
        elif step["type"] != "identity":  # a matrix, or numbers kept elsewhere
            return axes, None
    if axes is None or not any(step["type"] == "scale" for step in steps):
        return axes, None
    sizes = {a: n for a, n in zip(axes, scale.tolist(), strict=True) if a in "XYZ"}
    units = {a: str(e.get("unit", "")) for a, e in zip(axes, entries, strict=True)}
    place = Place.measured(sizes, units)
    with np.errstate(divide="ignore", invalid="ignore"):
        ways = dict(zip(axes, first / scale, strict=True))
    voxels = np.array([ways.get(a, 0.0) for a in "XYZ"])
    return axes, place.moved(np.where(np.isfinite(voxels), voxels, 0))


def _warn_of_absent(path: Path, array: Any) -> str | None:
    """Say how many chunks are absent, which Zarr reads as the fill value without a word.

    One listing of each folder; zarr's own ``nchunks_initialized`` takes the square of their number.
    """
    edges = array.shards or array.chunks
    counts = [math.ceil(n / edge) for n, edge in zip(array.shape, edges, strict=True)]
    folder = path / array.path
    present = {
        os.path.relpath(os.path.join(place, name), folder)
        for place, _, names in os.walk(folder, followlinks=True)
        for name in names
    }
    keys = map(array.metadata.encode_chunk_key, itertools.product(*map(range, counts)))
    total, absent = math.prod(counts), sum(key not in present for key in keys)
    if not absent:
        return None
    of = f"the {total} chunks of its array {array.path}" if array.path else f"its {total} chunks"
    return (
        f"{path}: {absent} of {of} {'is' if absent == 1 else 'are'} absent and read as the fill "
        f"value, {array.fill_value}: right if nothing was to be stored there, wrong if the copy is "
        "not complete"
    )


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write OME-Zarr 0.4 (https://ngff.openmicroscopy.org/0.4) of one level.

    A box says where it was cut out by a translation.
    """
    import zarr

    axes = "YX" if len(layout.shape) == 2 else "ZYX"
    place = layout.placed.in_units(1.0)
    steps = [{"type": "scale", "scale": place.sizes[::-1]}]
    if any(place.way):
        steps.append({"type": "translation", "translation": place.way[::-1]})
    unit = {"unit": "micrometer"} if math.isfinite(place.unit) else {}
    multiscale = {
        "version": "0.4",
        "name": "data",
        "axes": [{"name": a.lower(), "type": "space", **unit} for a in axes],
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
    }
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.attrs["multiscales"] = [multiscale]
    shape = layout.shape[::-1]
    array = group.create_array(
        "0",
        shape=shape,
        dtype=layout.dtype,
        chunks=chunks_of(shape, axes),
        chunk_key_encoding={"name": "v2", "separator": "/"},
        config={"write_empty_chunks": True},  # so that one that is absent was lost
    )
    fill_chunks(array, axes, slabs)
