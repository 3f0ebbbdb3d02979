"""Making a file: laying it out, writing rows in any order, picking up, finishing.

The package's docstring says why what is written survives a kill at any moment.
"""

from __future__ import annotations

import errno
import json
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from utils.replacing import sync
from utils.storage.errors import RecipeMismatchError, StorageError, reason
from utils.storage.journal import (
    FRAME,
    HEAD,
    append_frame,
    journal_path,
    lock_journal,
    partial_path,
    read_all,
    scan_frames,
    write_all,
)
from utils.storage.layout import (
    FORMAT_VERSION,
    GZIP_LEVEL,
    IMAGE_TEXT,
    PARAMETER_TEXT,
    PERCENTILES_TEXT,
    PROGRAM_VERSION,
    RAGGED,
    VOXELS,
    chunk_corners,
    chunk_shape,
    parameter_layout,
    row_bytes,
)
from utils.storage.recipe import Recipe, differing
from utils.storage.rows import EncodedRow, pack, unpack

SYNC_ROWS = 16
"""Rows between two requests to put what was written on the disk."""


_LIBVER = ("v110", "v110")


class VolumeWriter:
    """Puts encoded rows, in any order, into a file that gets its name when it is complete.

    Made by :func:`open_writer`. All methods raise StorageError, naming the file, when the disk is
    full or fails; what was written stays for the next attempt.
    """

    def __init__(self, path: Path, recipe: Recipe, image_fd: int, journal_fd: int) -> None:
        self.path = path
        self.recipe = recipe
        self.restarted_because = ""
        """Why a file that had been begun could not be picked up; empty otherwise."""
        self._image_fd = image_fd
        self._journal_fd = journal_fd
        self._image_offset = 0
        self._journal_end = 0
        self._records: dict[int, tuple[int, int]] = {}  # sample: place and size in the journal
        self._unsynced = 0

    @property
    def missing(self) -> list[int]:
        """Indices of the samples that are still to be written, rising."""
        return [i for i in range(self.recipe.num_samples) if i not in self._records]

    def write(self, index: int, row: EncodedRow) -> None:
        """Write sample ``index``: first its image, then the record that makes it count."""
        size = row_bytes(self.recipe.config.shape)
        if not 0 <= index < self.recipe.num_samples or len(row.image) != size:
            raise ValueError(f"row {index} of {len(row.image)} bytes does not fit {self.recipe}")
        with self._disk_errors():
            write_all(self._image_fd, row.image, self._image_offset + index * size)
            start = self._journal_end + FRAME.size
            self._journal_end = append_frame(self._journal_fd, index, row.record, self._journal_end)
            self._records[index] = (start, len(row.record))
            self._unsynced += 1
            if self._unsynced == SYNC_ROWS:
                self._sync()

    def finish(self) -> None:
        """Write the tables, give the file its final name and remove the journal.

        Raises ValueError if a sample is missing.
        """
        if self.missing:
            raise ValueError(f"{self.path}: {len(self.missing)} samples are missing")
        partial = partial_path(self.path)
        with self._disk_errors():
            self._sync()
            with h5py.File(partial, "r+", libver=_LIBVER) as file:
                _create_tables(file, self.recipe)
                for index in range(self.recipe.num_samples):
                    start, size = self._records[index]
                    _store_record(file, index, unpack(read_all(self._journal_fd, size, start)))
                file.attrs["complete"] = True
            os.fsync(self._image_fd)
            os.replace(partial, self.path)
            sync(self.path.parent)
            journal_path(self.path).unlink()

    def discard(self) -> None:
        """Remove all that was written; a complete file under the final name stays."""
        partial_path(self.path).unlink(missing_ok=True)
        journal_path(self.path).unlink(missing_ok=True)

    def close(self) -> None:
        """Release the files; what is written stays for a later :func:`open_writer`."""
        for fd in (self._image_fd, self._journal_fd):
            if fd >= 0:
                os.close(fd)
        self._image_fd = self._journal_fd = -1

    def __enter__(self) -> VolumeWriter:
        """Return itself; leaving the block closes."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _sync(self) -> None:
        os.fsync(self._image_fd)
        os.fsync(self._journal_fd)
        self._unsynced = 0

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # h5py raises either
            done = self.recipe.num_samples - len(self.missing)
            raise StorageError(
                f"{self.path}: cannot be written: {reason(error)}; {done} of "
                f"{self.recipe.num_samples} samples are kept in {partial_path(self.path).name}: "
                "when the cause is removed, the same command picks up there"
            ) from error

    def _create(self) -> None:
        """Lay out an empty file and begin its journal."""
        _create_skeleton(partial_path(self.path), self.recipe)
        offset, size = _image_block(partial_path(self.path))
        self._image_fd = os.open(partial_path(self.path), os.O_RDWR)
        end = os.fstat(self._image_fd).st_size
        _reserve(self._image_fd, end)
        head = {
            "recipe": np.frombuffer(
                json.dumps(_recipe_and_versions(self.recipe)).encode(), np.uint8
            ),
            "block": np.array([offset, size, end]),
            "before": np.frombuffer(read_all(self._image_fd, offset, 0), np.uint8),
            "after": np.frombuffer(
                read_all(self._image_fd, end - offset - size, offset + size), np.uint8
            ),
        }
        os.fsync(self._image_fd)
        os.ftruncate(self._journal_fd, 0)
        self._journal_end = append_frame(self._journal_fd, HEAD, pack(head), 0)
        os.fsync(self._journal_fd)
        self._image_offset = offset

    def _resume(self, head: dict[str, np.ndarray]) -> None:
        """Put the tables back as they were at the start, and find the rows that are whole."""
        self._image_fd = os.open(partial_path(self.path), os.O_RDWR)
        offset, size, end = map(int, head["block"])
        os.ftruncate(self._image_fd, end)
        _reserve(self._image_fd, end)
        write_all(self._image_fd, head["before"].tobytes(), 0)
        write_all(self._image_fd, head["after"].tobytes(), offset + size)
        self._image_offset = offset
        image_bytes = row_bytes(self.recipe.config.shape)
        for index, start, payload in scan_frames(self._journal_fd):
            self._journal_end = start + len(payload)
            if index == HEAD:
                continue
            image = read_all(self._image_fd, image_bytes, offset + index * image_bytes)
            if zlib.crc32(image) == int(unpack(payload)["image_crc"]):
                self._records[index] = (start, len(payload))
        os.ftruncate(self._journal_fd, self._journal_end)


def open_writer(path: Path, recipe: Recipe, *, restart: bool = False) -> VolumeWriter:
    """Begin ``path``, or pick up where an interrupted process stopped.

    ``restart`` throws away what was begun with another recipe. Raises RecipeMismatchError if
    something was and ``restart`` is not set, and StorageError if another process writes this file,
    a directory has its name, or the disk has no room.
    """
    if path.is_dir():
        raise StorageError(f"{path}: a directory, not a file")
    journal_fd = lock_journal(path)
    writer = VolumeWriter(path, recipe, -1, journal_fd)
    try:
        head = _read_head(journal_fd) if partial_path(path).exists() else None
        if head is not None and (old := _differences(head, recipe)):
            if not restart:
                raise RecipeMismatchError(partial_path(path), old)
            head = None
        elif head is None and partial_path(path).exists():
            writer.restarted_because = f"{journal_path(path)} cannot be read"
        if head is None:
            _create_or_remove(writer)
        else:
            with writer._disk_errors():
                writer._resume(head)
    except BaseException:
        writer.close()
        raise
    return writer


def _create_or_remove(writer: VolumeWriter) -> None:
    try:
        writer._create()
    except (OSError, RuntimeError) as error:
        writer.discard()
        raise StorageError(f"{writer.path}: cannot be begun: {reason(error)}") from error
    except BaseException:
        writer.discard()
        raise


def remove_stray_journal(path: Path) -> None:
    """Remove the journal of a complete file, left by a process killed right after the renaming."""
    if journal_path(path).exists() and not partial_path(path).exists():
        fd = lock_journal(path)
        journal_path(path).unlink()
        os.close(fd)


def _read_head(journal_fd: int) -> dict[str, np.ndarray] | None:
    """Return the first record of a journal, None where there is none."""
    for index, _, payload in scan_frames(journal_fd):
        return unpack(payload) if index == HEAD else None
    return None


def _differences(head: dict[str, np.ndarray], recipe: Recipe) -> list[tuple[str, Any, Any]]:
    return differing(json.loads(head["recipe"].tobytes()), _recipe_and_versions(recipe))


def _recipe_and_versions(recipe: Recipe) -> dict[str, Any]:
    versions = {"program_version": PROGRAM_VERSION, "format_version": FORMAT_VERSION}
    return {**recipe.to_dict(), **versions}


def _create_skeleton(path: Path, recipe: Recipe) -> None:
    """Make an HDF5 file with the attributes and room for all images."""
    shape = recipe.config.shape
    with h5py.File(_create_without_times(path)) as file:
        file.attrs["description"] = "Simulated volumes of the fly's optic lobe with exact labels."
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["program_version"] = PROGRAM_VERSION
        file.attrs["configuration"] = json.dumps(recipe.config.to_dict())
        file.attrs["seed"] = recipe.seed
        file.attrs["num_samples"] = recipe.num_samples
        file.attrs["complete"] = False
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_chunk((1, *chunk_shape(shape)))
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)
        space = h5py.h5s.create_simple((recipe.num_samples, *shape))
        images = h5py.h5d.create(file.id, b"vol_data", h5py.h5t.IEEE_F16LE, space, creation)
        h5py.Dataset(images).attrs["description"] = IMAGE_TEXT


def _create_without_times(path: Path) -> h5py.h5f.FileID:
    """Make an HDF5 file without times of making, so that equal recipes give equal bytes."""
    creation = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    creation.set_obj_track_times(False)
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    return h5py.h5f.create(os.fsencode(path), h5py.h5f.ACC_TRUNC, creation, access)


def _image_block(path: Path) -> tuple[int, int]:
    """Return offset and size in bytes of the images; checks that they are one plain array."""
    with h5py.File(path, "r") as file:
        images = file["vol_data"]
        chunk = 2 * math.prod(images.chunks)
        count = images.id.get_num_chunks()
        offset = images.id.get_chunk_info(0).byte_offset
        if images.id.get_chunk_info(count - 1).byte_offset != offset + (count - 1) * chunk:
            raise RuntimeError("this HDF5 library does not lay out the images as one block")
    return offset, count * chunk


def _reserve(fd: int, size: int) -> None:
    """Claim the room on the disk now, so that a full one is noticed before the work."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _create_tables(file: h5py.File, recipe: Recipe) -> None:
    count, shape = recipe.num_samples, recipe.config.shape
    for name, (dtype, text) in VOXELS.items():
        voxels = file.create_dataset(
            name,
            (count, *shape),
            dtype,
            chunks=(1, *chunk_shape(shape)),
            compression="gzip",
            compression_opts=GZIP_LEVEL,
        )
        voxels.attrs["description"] = text
    percentiles = file.create_dataset("vol_percentiles", (count, 2), "<f4")
    percentiles.attrs["description"] = PERCENTILES_TEXT
    for name, part in RAGGED.items():
        ragged = file.create_dataset(name, (count,), h5py.vlen_dtype(np.dtype(part.dtype)))
        ragged.attrs["description"] = f"{part.description}; {_usage(name, part.shape)}"
    file.create_group("parameters").attrs["description"] = "drawn for each sample"
    for name, (dtype, item) in parameter_layout().items():
        values = file.create_dataset("parameters/" + name, (count, *item), dtype)
        values.attrs["description"] = f"{name} of each sample: {PARAMETER_TEXT}"


def _usage(name: str, shape: tuple[int, ...]) -> str:
    sizes = ", ".join("n" if edge < 0 else str(edge) for edge in shape)
    if len(shape) == 1:
        return f"({sizes},) per sample: f['{name}'][sample]"
    return f"({sizes}) per sample: f['{name}'][sample].reshape{shape}"


def _store_record(file: h5py.File, index: int, record: dict[str, np.ndarray]) -> None:
    shape = file["vol_data"].shape[1:]
    for name in VOXELS:
        chunks, stream, start = file[name].id, record[name].tobytes(), 0
        sizes = record[name + "_sizes"].tolist()
        for corner, size in zip(chunk_corners(shape), sizes, strict=True):
            if size:  # a chunk that is not there reads as zeros
                chunks.write_direct_chunk((index, *corner), stream[start : start + size])
            start += size
    for name in ("vol_percentiles", *RAGGED):
        file[name][index] = record[name]
    for name in parameter_layout():
        file["parameters"][name][index] = record["parameters/" + name]
