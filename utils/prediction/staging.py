"""Planes that are predicted, kept on the disk until the outputs are written from them.

They lie in the folder ``NAME.partial`` beside an output ``NAME``, an append-only file of plain
numbers for each output, whose length tells how many planes are done, with a record of what they
were made from. Work that is interrupted, or killed, goes on after the last whole plane.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, disk_errors
from utils.prediction.memory import DTYPES, SLAB_BYTES
from utils.replacing import replacing


@dataclass(frozen=True)
class Staging:
    """The folder of the planes that are done; made by :func:`open_staging`."""

    folder: Path
    shape: tuple[int, ...]
    """Of the whole outputs; planes are along the last axis."""
    names: tuple[str, ...]
    done: int = 0
    """Planes that were there when it was opened."""

    def extend(self, slabs: Iterable[tuple[int, np.ndarray]], threshold: float) -> None:
        """Put down all slabs (start, (X, Y, n)), the first of which follows what is there."""
        for _, slab in slabs:
            self.append(slab, threshold)

    def append(self, probabilities: np.ndarray, threshold: float) -> None:
        """Put down the next slab (X, Y, n) of each output, and wait until the disk has it."""
        for name in self.names:
            slab = probabilities >= threshold if name == "mask" else probabilities
            with disk_errors(self.folder, "written"), open(self.file(name), "ab") as file:
                file.write(np.ascontiguousarray(slab.T, DTYPES[name]))
                file.flush()
                os.fsync(file.fileno())

    def slabs(self, name: str) -> Iterator[np.ndarray]:
        """Yield what was put down for one output, (X, Y, n), from its first plane on."""
        planes, plane = planes_at_once(self.shape, name), math.prod(self.shape[:-1])
        with open(self.file(name), "rb") as file:
            for start in range(0, self.shape[-1], planes):
                count = min(planes, self.shape[-1] - start)
                yield (
                    np.fromfile(file, DTYPES[name], count * plane)
                    .reshape(count, *self.shape[-2::-1])
                    .T
                )

    def file(self, name: str) -> Path:
        """Return where the planes of one output are."""
        return self.folder / f"{name}.raw"


def planes_at_once(shape: tuple[int, ...], name: str) -> int:
    """Return how many planes of an output make a slab of :data:`SLAB_BYTES`, at least one."""
    return max(1, SLAB_BYTES // (math.prod(shape[:-1]) * DTYPES[name].itemsize))


@contextmanager
def open_staging(
    output: Path, shape: tuple[int, ...], names: tuple[str, ...], made_from: Mapping[str, Any]
) -> Iterator[Staging]:
    """Open the folder ``output.partial`` for this process alone; remove it when all went well.

    Planes found there are kept if they were ``made_from`` the same (plain JSON), which must tell
    everything that they depend on. Raises UserError if another process is at work there, or if the
    disk has no room or cannot be written.
    """
    folder = output.with_name(output.name + ".partial")
    with disk_errors(folder, "written"):
        folder.mkdir(exist_ok=True)
        lock = open(folder / "lock", "w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{output}: another process is writing it") from error
        staging, record = Staging(folder, shape, names), folder / "made_from.json"
        text = json.dumps({**made_from, "shape": shape, "outputs": names}, sort_keys=True)
        with disk_errors(folder, "written"):
            if not record.exists() or record.read_text() != text:
                _begin(staging, output)
                with replacing(record) as path:
                    path.write_text(text)
            staging = replace(staging, done=_cut_to_whole_planes(staging))
        yield staging
        with disk_errors(folder, "written"):
            shutil.rmtree(folder)


def _begin(staging: Staging, output: Path) -> None:
    """Empty the folder but for its lock, and make the files; UserError if the disk is too full."""
    for left in staging.folder.iterdir():
        if left.name != "lock":
            left.unlink()
    voxel = sum(DTYPES[name].itemsize for name in staging.names)
    needed, free = 2 * voxel * math.prod(staging.shape), shutil.disk_usage(staging.folder).free
    if needed > free:
        shutil.rmtree(staging.folder)
        raise UserError(
            f"{output}: needs up to {needed / 1e9:.1f} GB of disk while it is made, and "
            f"{free / 1e9:.1f} GB are free"
        )
    for name in staging.names:
        staging.file(name).touch()


def _cut_to_whole_planes(staging: Staging) -> int:
    """Return how many planes are there for all outputs; what is there of more is cut off."""
    plane = math.prod(staging.shape[:-1])
    sizes = {staging.file(name): plane * DTYPES[name].itemsize for name in staging.names}
    done = min(path.stat().st_size // size for path, size in sizes.items())
    for path, size in sizes.items():
        os.truncate(path, done * size)
    return done
