"""Planes that are predicted, kept on the disk until the outputs are written from them.

They lie in the folder ``NAME.partial`` beside an output ``NAME``: an append-only file of plain
numbers, whose length tells how many planes are done, with a record of what they were made from.
Work that is interrupted, or killed, goes on after the last whole plane.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError, disk_errors
from utils.replacing import replacing
from utils.resampling import planes_at_once

RECORD = "made_from.json"


@dataclass(frozen=True)
class Staging:
    """The folder of the planes that are done; made by :func:`open_staging`."""

    folder: Path
    shape: tuple[int, ...]  # of the whole; planes are along the last axis
    dtype: np.dtype
    done: int = 0  # planes that were there when it was opened

    @property
    def file(self) -> Path:
        """Where the planes are."""
        return self.folder / "planes.raw"

    @property
    def plane_bytes(self) -> int:
        """Bytes of a plane."""
        return math.prod(self.shape[:-1]) * self.dtype.itemsize

    def append(self, slab: np.ndarray) -> None:
        """Put down the next slab (X, Y, n), and wait until the disk has it."""
        with disk_errors(self.folder, "written"), open(self.file, "ab") as file:
            file.write(np.ascontiguousarray(slab.T, self.dtype))
            file.flush()
            os.fsync(file.fileno())

    def slabs(self) -> Iterator[np.ndarray]:
        """Yield what was put down, (X, Y, n), from the first plane on."""
        planes = planes_at_once(self.plane_bytes)
        with open(self.file, "rb") as file:
            for start in range(0, self.shape[-1], planes):
                lengths = (min(planes, self.shape[-1] - start), *self.shape[-2::-1])
                yield np.fromfile(file, self.dtype, math.prod(lengths)).reshape(lengths).T


def earlier_record(output: Path) -> dict[str, Any]:
    """Return what the planes that wait beside ``output`` were made from; empty if there are none.

    Raises UserError where the record cannot be read.
    """
    record = _folder(output) / RECORD
    with disk_errors(record):
        return json.loads(record.read_text()) if record.exists() else {}


@contextmanager
def open_staging(
    output: Path, shape: tuple[int, ...], dtype: np.dtype, made_from: Mapping[str, Any]
) -> Iterator[Staging]:
    """Open the folder ``output.partial`` for this process alone; remove it when all went well.

    Planes found there are kept if they were ``made_from`` the same (plain JSON), which must tell
    everything that they depend on. Raises UserError if another process is at work there, or if the
    disk has no room or cannot be written.
    """
    folder = _folder(output)
    with disk_errors(folder, "written"):
        folder.mkdir(exist_ok=True)
        lock = open(folder / "lock", "w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{output}: another process is writing it") from error
        staging, record = Staging(folder, shape, np.dtype(dtype)), folder / RECORD
        text = json.dumps({**made_from, "shape": shape, "dtype": str(dtype)}, sort_keys=True)
        with disk_errors(folder, "written"):
            if not record.exists() or record.read_text() != text:
                _begin(staging, output)
                with replacing(record) as path:
                    path.write_text(text)
            done = staging.file.stat().st_size // staging.plane_bytes
            os.truncate(staging.file, done * staging.plane_bytes)  # a plane that was cut goes
        yield replace(staging, done=done)
        with disk_errors(folder, "written"):
            shutil.rmtree(folder)


def _folder(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def _begin(staging: Staging, output: Path) -> None:
    """Empty the folder but for its lock, and make the file; UserError if the disk is too full."""
    for left in staging.folder.iterdir():
        if left.name != "lock":
            left.unlink()
    needed = 2 * staging.plane_bytes * staging.shape[-1]  # the planes, and an output made of them
    free = shutil.disk_usage(staging.folder).free
    if needed > free:
        shutil.rmtree(staging.folder)
        raise UserError(
            f"{output}: needs up to {needed / 1e9:.1f} GB of disk while it is made, and "
            f"{free / 1e9:.1f} GB are free"
        )
    staging.file.touch()
