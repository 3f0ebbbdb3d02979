"""Zeiss's CZI by pylibCZIrw, Zeiss's own: each scene a stack, the tiles of its mosaic joined."""

import importlib
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from utils.errors import UserError
from utils.stacks.place import Place, number_in
from utils.stacks.stack import Contents, FileArray, library_errors

KINDS = {"Gray8": "u1", "Gray16": "u2", "Gray32Float": "f4"}  # not colours, as of slide scanners


def contents(path: Path) -> Contents:
    """Open the scenes of a file at full resolution."""
    try:
        library = importlib.import_module("pylibCZIrw.czi")
    except ModuleNotFoundError as error:
        needs = f"needs {error.name}: pip install -r requirements-formats.txt"
        raise UserError(f"{path}: {needs}; or save it as .tif in Fiji") from error
    blocks, scenes, found = [], defaultdict(list), {}
    with ExitStack() as held:
        with library_errors(path):
            file = library.CziReader(str(path))
            held.callback(file.close)
            file.enumerate_subblocks_subset(lambda _, b: blocks.append(b) or True, only_layer0=True)
            for block in blocks:
                at = block.coordinate.to_dict()
                scenes[at.pop("S", None)].append((at, block))
            root = ElementTree.fromstring(file.raw_metadata)
            sizes = {d.get("Id", ""): number_in(d.findtext("Value")) for d in root.iter("Distance")}
        place = Place.aligned(sizes, 1e6).in_units()
        for k, number in enumerate(sorted(scenes)):
            name = str(k) if len(scenes) > 1 else ""
            found[name] = _scene(path, file, number, scenes[number], place)
        told = {"listed": [*found], "unasked": [*found], "close": held.pop_all().close}
    return Contents(path, found, found.__getitem__, flag="--series", **told)


def _scene(path: Path, file: Any, number: Any, blocks: Sequence[Any], place: Place) -> FileArray:
    """Return a scene as (T, C, Z, Y, X), whose coordinates may begin anywhere; of others one."""
    along = {a: sorted({at.get(a, 0) for at, _ in blocks}) for a in "TCZRIHVB"}
    others = {a: along[a][0] for a in "RIHVB" if len(along[a]) > 1}
    blocks = [(at, block) for at, block in blocks if others.items() <= at.items()]
    tiles = Counter(tuple(at.get(a, 0) for a in "TCZ") for at, _ in blocks)
    kinds = {at.get("C", 0): block.pixelType.name for at, block in blocks}
    if unread := {*kinds.values()} - {*KINDS}:
        pixels = f"pixels ({', '.join(sorted(unread))}), which are not read"
        raise UserError(f"{path}: holds {pixels}; save it as .tif in Fiji")
    seen, stored = zip(*((b.logicalRect, b.physicalSize) for _, b in blocks), strict=True)
    left, top = min(r.x for r in seen), min(r.y for r in seen)
    edges = (max(r.y + r.h for r in seen) - top, max(r.x + r.w for r in seen) - left)
    shape = (*(len(along[a]) for a in "TCZ"), *edges)
    dtype, total = np.result_type(*map(KINDS.get, kinds.values())), math.prod(shape[:3])

    def read(where: tuple[int | slice, ...]) -> np.ndarray:
        grid = np.stack(np.meshgrid(*(along[a] for a in "TCZ"), indexing="ij"), -1)[where[:3]]
        rows, columns = (np.arange(n)[w] for n, w in zip(edges, where[3:], strict=True))
        roi = (left + int(columns.min()), top + int(rows.min()), columns.size, rows.size)
        planes = []
        for at in grid.reshape(-1, 3).tolist():
            plane = dict(zip("TCZ", at, strict=True)) | others
            planes.append(file.read(roi, plane, number, pixel_type=kinds[at[1]]))
        return np.array(planes, dtype).reshape(*grid.shape[:-1], *rows.shape, *columns.shape)

    def warning() -> str | None:
        lost = f"{path}: {total - len(tiles)} of its {total} planes were never written"
        return None if len(tiles) == total else f"{lost} and are read as zeros"

    notes = [f"of its {len(along[a])} places along {a} the first is read" for a in others]
    if max(tiles.values()) > 1:
        notes.append(f"a mosaic of up to {max(tiles.values())} tiles a plane, joined")
    told = {"axes": "TCZYX", "place": place, "notes": (*notes,), "warning": warning}
    told["chunks"] = (1, 1, 1, max(s.h for s in stored), max(s.w for s in stored))
    return FileArray(path, shape, dtype, read, **told)
