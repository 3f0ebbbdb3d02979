"""Zarr and OME-Zarr (https://ngff.openmicroscopy.org) by zarr-python: folders of chunks."""

import itertools
import json
import math
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from utils.errors import UserError
from utils.stacks.axes import NAMES, axis_letters, told_axes
from utils.stacks.place import Place
from utils.stacks.stack import Contents, FileArray, StackLayout, fill, library_errors

KEEPS = ("voxel size", "place")
MOST_AT_ONCE, BYTES_AT_ONCE = 10, 32 << 20  # chunks unpacked at a time, and their bytes


def contents(path: Path) -> Contents:
    """Look through a folder, which may lie within another one.

    Listed are its images, those of labels too, or its arrays where it has none. A group's name is
    the finest level of its first image, of those below but labels, or its arrays.
    """
    arrays, finest, levels = _found(path)

    def group(name: str) -> list[str]:
        prefix = f"{name}/".lstrip("/")
        below = [image for image in finest if image.startswith(prefix)]
        kept = [image for image in below if "labels" not in image[len(prefix) :].split("/")]
        images = [finest[image][0] for image in ([name] if name in finest else kept or below)]
        return images or [array for array in arrays if array.startswith(prefix) or not array]

    listed = [*itertools.chain(*finest.values())] or [*arrays]
    told = {"listed": listed, "unasked": group(""), "group": group}
    return Contents(path, arrays, lambda n: _array(path, arrays[n], levels.get(n)), **told)


def _found(path: Path) -> tuple[dict[str, Any], dict[str, list[str]], dict[str, Any]]:
    """Return arrays by name, images' finest by group, and levels, those of folders around too."""
    arrays, finest, levels = {}, {}, {}
    with library_errors(path):
        opened = zarr.open(str(path), mode="r")
        whole = isinstance(opened, zarr.Array)
        below = {} if whole else dict(opened.members(None))  # in no order
        for name in ["", *sorted(below, key=lambda name: (len(name), name))]:
            item = below.get(name, opened)
            if isinstance(item, zarr.Array):
                if whole or item.ndim > 1:
                    arrays[name] = item
            elif images := _images(item, f"{name}/".lstrip("/")):
                finest[name] = [next(iter(image)) for image in images]
                levels |= dict(itertools.chain(*map(dict.items, images)))
        for folder in path.absolute().parents:
            if (folder / ".zgroup").is_file() or (folder / "zarr.json").is_file():
                inner = f"{path.absolute().relative_to(folder).as_posix()}/"
                images = _images(zarr.open_group(str(folder), mode="r"), "")
                for name, level in itertools.chain(*map(dict.items, images)):
                    if f"{name}/".startswith(inner):
                        levels.setdefault(f"{name}/"[len(inner) : -1], level)
    for name in itertools.chain(*finest.values()):
        if name not in arrays:
            raise UserError(f"{path}: lacks the array {name}, the full resolution of an image")
    return arrays, finest, levels


def _images(group: Any, prefix: str) -> list[dict[str, Any]]:
    """Return the levels of each image of a group, OME-NGFF 0.1 to 0.5, by name, finest first."""
    attributes = dict(group.attrs)
    found = dict(attributes.get("ome", attributes)).get("multiscales") or ()
    levels = [(image, image.get("datasets") or ()) for image in found]
    named = [{prefix + str(d["path"]).strip("/"): (image, d) for d in of} for image, of in levels]
    return [image for image in named if image]


def _array(path: Path, opened: Any, level: Any) -> FileArray:
    """Return an array with what its image, or its own attributes, say."""
    with library_errors(path):
        if "pickle" in json.dumps(opened.metadata.to_dict(), default=str).lower():
            raise UserError(f"{path}: is stored as pickled objects, which are never loaded")
        axes, place, note = _places(level, opened.ndim) if level else (None, Place.aligned({}), "")
        dimensions = getattr(opened.metadata, "dimension_names", None)
        axes = axes or told_axes(dict(opened.attrs), [dimensions], opened.ndim)
        chunk = max(1, math.prod(opened.chunks) * opened.dtype.itemsize)
    at_once = max(1, min(MOST_AT_ONCE, BYTES_AT_ONCE // chunk))

    def few_at_once(where: Any) -> np.ndarray:
        with zarr.config.set({"async.concurrency": at_once}):
            return opened[where]

    told = {"axes": axes, "place": place, "at_once": at_once}
    told |= {"chunks": opened.chunks, "warning": lambda: _warn_of_absent(path, opened)}
    return FileArray(path, opened.shape, opened.dtype, few_at_once, **told).noted(note)


def _places(found: Any, count: int) -> tuple[str | None, Place, str]:
    """Return axes, place and a note by OME-NGFF's metadata on an array's image and level.

    The image's own transformations come after those of the level (0.4). Axes are T, C, Z, Y, X in
    0.1 and 0.2, names in 0.3, and have types and units since 0.4.
    """
    unknown = Place.aligned({})
    image, level = found
    named_axes = image.get("axes") or list("tczyx"[-count:])
    entries = [a if isinstance(a, dict) else {"name": a} for a in named_axes]
    names = [e["name"] if str(e["name"]).lower() in NAMES else e.get("type", "") for e in entries]
    axes = axis_letters(names) if len(names) > 1 else None
    steps = [s for of in (level, image) for s in of.get("coordinateTransformations") or []]
    scale, first = np.ones(len(entries)), np.zeros(len(entries))
    for step in steps:  # one with neither is a matrix, or names an array of its numbers
        if step["type"] == "scale" in step:
            factors = np.array(step["scale"], float)
            scale, first = scale * factors, first * factors
        elif step["type"] == "translation" in step:
            first = first + np.array(step["translation"], float)
        elif step["type"] != "identity":
            return axes, unknown, "its voxel size and place are kept in another way than read"
    if axes is None or not any(step["type"] == "scale" for step in steps):
        return axes, unknown, ""
    sizes = {a: n for a, n in zip(axes, scale.tolist(), strict=True) if a in "XYZ"}
    units = {a: str(e.get("unit", "")) for a, e in zip(axes, entries, strict=True)}
    place = Place.measured(sizes, units)
    place = replace(place, steps=place.steps * [math.copysign(1, sizes.get(a, 1)) for a in "XYZ"])
    with np.errstate(divide="ignore", invalid="ignore"):
        ways = dict(zip(axes, first / scale, strict=True))
    return axes, place.moved([ways.get(a, 0.0) for a in "XYZ"]), ""


def _warn_of_absent(path: Path, array: Any) -> str | None:
    """Say how many chunks are absent; zarr's own count takes the square of their number."""
    edges = zip(array.shape, array.shards or array.chunks, strict=True)
    counts = [math.ceil(n / edge) for n, edge in edges]
    folder, total = path / array.path, math.prod(counts)
    keys = map(array.metadata.encode_chunk_key, itertools.product(*map(range, counts)))
    absent = sum(not os.path.isfile(os.path.join(folder, key)) for key in keys)
    said = f"chunks absent from {f'its array {array.path}'.strip()}: {absent} of {total}"
    reason = "right if nothing was to be stored there, wrong if the copy is not complete"
    told = f"{path}: {said}, read as the fill value, {array.fill_value}: {reason}"
    return told if absent else None


def write(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write OME-Zarr 0.4 (https://ngff.openmicroscopy.org/0.4) of one level."""
    axes = "ZYX"[-len(layout.shape) :]
    place = layout.placed.in_units()
    steps = [{"type": "scale", "scale": place.sizes[::-1]}]
    if any(place.way):
        steps.append({"type": "translation", "translation": place.way[::-1]})
    unit = {"unit": "micrometer"} if place.has_unit else {}
    image = {"version": "0.4", "name": "data"}
    image["axes"] = [{"name": a.lower(), "type": "space", **unit} for a in axes]
    image["datasets"] = [{"path": "0", "coordinateTransformations": steps}]
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.attrs["multiscales"] = [image]
    kind = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    kind["config"] = {"write_empty_chunks": True}  # so that one that is absent was lost
    fill(group.create_array("0", **layout.stored(axes), **kind), axes, slabs)
