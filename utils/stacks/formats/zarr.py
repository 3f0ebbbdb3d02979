"""Zarr and OME-Zarr (https://ngff.openmicroscopy.org) by zarr-python: folders of chunks."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.place import Place
from utils.stacks.stack import (
    FileArray,
    Source,
    StackLayout,
    chunks_of,
    fill_chunks,
    library_errors,
    named,
)
from utils.stacks.units import micrometres_per


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
        axes, spacing, place = _places(multiscale, opened.path)
    return Source(
        array,
        axes or (str(own).upper() if own else None),
        spacing,
        place=place,
        warning=lambda: _warn_of_absent(path, opened),
    )


def _places(
    multiscale: Mapping[str, Any], name: str
) -> tuple[str | None, dict[str, float], Place | None]:
    """Return axes, spacing and place of an array by OME-NGFF's metadata, if there are any."""
    if not multiscale:
        return None, {}, None
    entries = [a if isinstance(a, dict) else {"name": a} for a in multiscale["axes"]]
    own = [d for d in multiscale["datasets"] if d["path"].strip("/") == name.strip("/")]
    steps = own[0].get("coordinateTransformations", []) if own else []
    spacing = _lengths(steps, "scale", entries)
    try:
        place = _lengths(steps, "translation", entries)
    except (TypeError, ValueError):  # left out where it cannot be read, as in TIFF
        place = {}
    known = [n if math.isfinite(n) else 0.0 for n in (place.get(a, 0.0) for a in "XYZ")]
    axes = "".join(str(entry["name"]) for entry in entries).upper()
    return axes, spacing, replace(Place.aligned(spacing), first=np.array(known))


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


def _lengths(
    steps: Iterable[Mapping[str, Any]], kind: str, axes: Iterable[Mapping[str, Any]]
) -> dict[str, float]:
    """Return the first transformation of a kind, in micrometres by axis letter; empty for none."""
    found = [step[kind] for step in steps if step.get("type") == kind]
    return {
        str(axis["name"]).upper(): float(length)
        * (micrometres_per(axis.get("unit", "")) or math.nan)
        for axis, length in zip(axes, found[0] if found else [], strict=bool(found))
    }


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
