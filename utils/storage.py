"""The HDF5 file of simulated volumes: its layout, how a row gets into it, and how it is read.

No other module knows a dataset's name. Plain h5py opens the file without plugins; ``LAYOUT`` lists
the datasets and each carries its text as the attribute ``description``. Axis order is (x, y, z).

While a file is made, two neighbours stand beside its final name and nothing under it:

- ``NAME.partial`` is the HDF5 file with room for all images. An image goes straight into its place
  in that block, which HDF5 lays out as one plain array (chunks without a filter, allocated early).
- ``NAME.rows.partial`` is a journal that only grows: one record with a check sum for each sample,
  written after its image, holding the check sum of that image and all that is compressed or ragged.

A process killed at any moment thus leaves a whole journal up to a torn tail, and never HDF5 tables
that were half rewritten: these are written once, at the end, from the journal, in the order of the
samples. If that last step is cut short, the file's own tables are put back from the journal's head.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import functools
import io
import itertools
import json
import math
import os
import struct
import typing
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from utils.simulation.volume import SimulatedVolume, VolumeConfig, VolumeParameters

FORMAT_VERSION = 1
"""Raised when a reader of the previous layout would fail or misread."""
PROGRAM_VERSION = "1.0.0"
"""Raised when the same configuration and seed give other numbers."""

CHUNK_EDGE = 32
"""Voxels per edge of a chunk: the fastest of 16, 32 and 64 (``benchmarks/bench_storage.py``)."""
GZIP_LEVEL = 3
"""The level whose masks are read fastest; a fifth smaller than 1, and 6 takes twice as long."""
SYNC_ROWS = 16
"""Rows between two requests to put what was written on the disk."""

_LARGEST_FLOAT16 = np.float32(np.finfo(np.float16).max)
_LIBVER = ("v110", "v110")


@dataclass(frozen=True)
class _Ragged:
    """A dataset with a flat array of its own length in each row; ``shape`` restores the array."""

    dtype: str
    shape: tuple[int, ...]
    description: str


_IMAGE_TEXT = "image, (sample, x, y, z), raw intensities"
_VOXELS = {
    "vol_labels": ("u1", "mask, (sample, x, y, z): 1 inside any column, left-out ones too"),
    "vol_instances": (
        "<u2",
        "instances, (sample, x, y, z): 0 background, k + 1 inside column k of this sample",
    ),
}
_RAGGED = {
    "points": _Ragged("<f4", (-1, 3), "mid-points of the columns, unit cube"),
    "entry_points": _Ragged("<f4", (-1, 3), "entry points of the columns, unit cube"),
    "e_r": _Ragged("<f4", (-1, 3), "column axes, outward; their norm scales lengths along them"),
    "e_theta": _Ragged("<f4", (-1, 3), "second vectors of the columns' frames"),
    "e_phi": _Ragged("<f4", (-1, 3), "third vectors of the columns' frames"),
    "column_type": _Ragged("u1", (-1,), "0 left out of the image, 1 dense, 2 clumped, 3 ring"),
    "control_points": _Ragged("<f4", (4, -1, 3), "Bezier control points of the neurites"),
    "lattice_coordinates": _Ragged("<i4", (-1, 3), "icosahedron face 0..19 and grid (i, j) on it"),
    "lattice_neighbours": _Ragged("<i4", (-1, 2), "pairs (k, l), k < l, of neighbouring columns"),
}
_PARAMETER_TEXT = "lengths in edges of the unit cube, angles in radians"
_PERCENTILES_TEXT = "1st and 99th percentile of each image as stored"

LAYOUT: dict[str, str] = {
    "vol_data": _IMAGE_TEXT,
    **{name: text for name, (_, text) in _VOXELS.items()},
    "vol_percentiles": _PERCENTILES_TEXT,
    **{name: part.description for name, part in _RAGGED.items()},
    "parameters": "group with one dataset per parameter drawn",
}
"""Names in the file and what they hold."""


class StorageError(ValueError):
    """A file cannot be read or written; the message names it and says what to do."""


class RecipeMismatchError(StorageError):
    """A file holds, or was begun with, other parameters; ``differences`` lists them."""

    def __init__(self, path: Path, differences: list[tuple[str, Any, Any]]) -> None:
        self.path = path
        self.differences = differences
        text = "; ".join(f"{name} is {old}, asked for {new}" for name, old, new in differences)
        super().__init__(f"{path}: other parameters: {text}")


@dataclass(frozen=True)
class Recipe:
    """All that decides a file's contents: sample i is simulated with ``sample_rng(seed, i)``."""

    config: VolumeConfig
    seed: int
    num_samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; ``from_dict`` is the inverse."""
        return {**self.config.to_dict(), "seed": self.seed, "num_samples": self.num_samples}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """Build a recipe from :meth:`to_dict`'s result."""
        rest = dict(values)
        seed, num_samples = rest.pop("seed"), rest.pop("num_samples")
        return cls(VolumeConfig.from_dict(rest), seed, num_samples)

    def differences(self, asked: Recipe) -> list[tuple[str, Any, Any]]:
        """Return (name, value here, value asked for) of each parameter that differs."""
        return _differing(self.to_dict(), asked.to_dict())


def _differing(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    names = dict.fromkeys([*old, *new])
    return [(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def disk_space(recipe: Recipe) -> int:
    """Return an upper estimate of the bytes needed while the file is made.

    Images are stored as they are; labels, frames and parameters, which stand in the journal too
    until the end, were measured at 2 to 4 % of them (128 voxels an edge); 12 % are allowed for.
    """
    return int(1.12 * recipe.num_samples * _row_bytes(recipe.config.shape)) + (1 << 20)


# --- One row: from arrays to bytes, in the process that simulates ---------------------------------


@dataclass(frozen=True)
class EncodedRow:
    """One sample as bytes that the writing process only has to put in their places."""

    image: bytes | memoryview
    """float16, chunk after chunk, each of the full chunk shape."""
    record: bytes | memoryview
    """Everything else, an npz archive."""


def encode_row(volume: SimulatedVolume) -> EncodedRow:
    """Round the image to float16, compress the labels, and pack the rest.

    Pure; meant for the worker. Intensities above 65504, the largest float16, are set to it. Raises
    ValueError if the image is negative or not finite anywhere.
    """
    image = _to_float16(volume.image)
    image_bytes = _split_chunks(image).tobytes()
    record: dict[str, np.ndarray] = {
        "image_crc": np.uint32(zlib.crc32(image_bytes)),
        "vol_percentiles": _percentiles(image),
    }
    instances = _split_chunks(np.asarray(volume.instances, "<u2"))
    for name, chunks in (("vol_labels", instances > 0), ("vol_instances", instances)):
        record[name], record[name + "_sizes"] = _compress_chunks(chunks)
    for name, part in _RAGGED.items():
        record[name] = np.asarray(getattr(volume, name), part.dtype).ravel()
    for name, (dtype, shape) in _parameter_layout().items():
        value = np.asarray(getattr(volume.parameters, name), dtype)
        record["parameters/" + name] = value.reshape(shape)
    return EncodedRow(image_bytes, _pack(record))


def _to_float16(image: np.ndarray) -> np.ndarray:
    if not image.min() >= 0 or not image.max() < np.inf:
        raise ValueError("an image must be finite and nowhere negative")
    return np.minimum(image, _LARGEST_FLOAT16).astype("<f2")


def _percentiles(image: np.ndarray) -> np.ndarray:
    """Return the 1st and 99th percentile, (2,) float32, of a float16 image >= 0.

    The bits of such numbers, read as integers, are in the numbers' order: a histogram of them gives
    exact order statistics in a tenth of the time of a sort. Between two of them, linear.
    """
    bits = image.view(np.uint16) & 0x7FFF  # without the sign of a negative zero
    cumulative = np.cumsum(np.bincount(bits.ravel()))
    position = np.array([0.01, 0.99]) * (image.size - 1)
    below = np.floor(position)
    ranks = np.stack([below, np.ceil(position)])
    ordered = np.searchsorted(cumulative, ranks, side="right").astype(np.uint16)
    low, high = ordered.view(np.float16).astype(np.float64)
    return (low + (high - low) * (position - below)).astype("<f4")


def _chunk_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(min(CHUNK_EDGE, edge) for edge in shape)


def _chunk_grid(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-edge // chunk) for edge, chunk in zip(shape, _chunk_shape(shape), strict=True))


def _chunk_corners(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    chunk = _chunk_shape(shape)
    return itertools.product(*map(range, (0,) * len(shape), shape, chunk))


def _row_bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(_chunk_grid(shape)) * math.prod(_chunk_shape(shape))


def _split_chunks(array: np.ndarray) -> np.ndarray:
    """Return (chunks, voxels of a chunk); chunks at the far borders are filled up with zeros."""
    grid, chunk = _chunk_grid(array.shape), _chunk_shape(array.shape)
    padding = [(0, g * c - n) for g, c, n in zip(grid, chunk, array.shape, strict=True)]
    if any(after for _, after in padding):
        array = np.pad(array, padding)
    split = array.reshape([n for pair in zip(grid, chunk, strict=True) for n in pair])
    axes = (*range(0, split.ndim, 2), *range(1, split.ndim, 2))
    return split.transpose(axes).reshape(math.prod(grid), math.prod(chunk))


def _compress_chunks(chunks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all compressed chunks on end, uint8, and the size of each: 0 where all is zero."""
    streams = [zlib.compress(chunk, GZIP_LEVEL) if chunk.any() else b"" for chunk in chunks]
    return np.frombuffer(b"".join(streams), np.uint8), np.array([len(s) for s in streams], "<u4")


@functools.cache
def _parameter_layout() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of each field of VolumeParameters: ints, floats, tuples of either."""
    layout = {}
    for name, hint in typing.get_type_hints(VolumeParameters).items():
        items = typing.get_args(hint)
        kind = items[0] if items else hint
        layout[name] = ({int: "<i8", float: "<f8"}[kind], (len(items),) if items else ())
    return layout


def _pack(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _unpack(payload: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(payload)) as archive:
        return dict(archive)


# --- The journal ----------------------------------------------------------------------------------

_FRAME = struct.Struct("<qQI")  # index of the sample, bytes of the payload, their check sum
_HEAD = -1


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _read_all(fd: int, size: int, offset: int) -> bytes:
    """Return ``size`` bytes, or fewer at the end of the file."""
    parts = []
    while size and (part := os.pread(fd, size, offset)):
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


def _append_frame(fd: int, index: int, payload: bytes | memoryview, offset: int) -> int:
    """Write one record at ``offset``; return where the next one goes."""
    frame = _FRAME.pack(index, len(payload), zlib.crc32(payload)) + payload
    _write_all(fd, frame, offset)
    return offset + len(frame)


def _scan_frames(fd: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (index, offset of the payload, payload) of all records up to the first torn one."""
    offset, end = 0, os.fstat(fd).st_size
    while len(head := _read_all(fd, _FRAME.size, offset)) == _FRAME.size:
        index, size, crc = _FRAME.unpack(head)
        offset += _FRAME.size
        if offset + size > end:
            return
        payload = _read_all(fd, size, offset)
        if zlib.crc32(payload) != crc:
            return
        yield index, offset, payload
        offset += size


def _lock_journal(path: Path) -> int:
    """Open or make the journal of ``path`` for this process alone; return its descriptor."""
    try:
        fd = os.open(_journal_path(path), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {_reason(error)}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            return fd  # a file system without locks
        os.close(fd)
        raise StorageError(f"{path}: another process is writing this file") from error
    return fd


def partial_path(path: Path) -> Path:
    """Return the name that the file bears while it is made."""
    return path.with_name(path.name + ".partial")


def _journal_path(path: Path) -> Path:
    return path.with_name(path.name + ".rows.partial")


# --- Writing --------------------------------------------------------------------------------------


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
        size = _row_bytes(self.recipe.config.shape)
        if not 0 <= index < self.recipe.num_samples or len(row.image) != size:
            raise ValueError(f"row {index} of {len(row.image)} bytes does not fit {self.recipe}")
        with self._disk_errors():
            _write_all(self._image_fd, row.image, self._image_offset + index * size)
            start = self._journal_end + _FRAME.size
            self._journal_end = _append_frame(
                self._journal_fd, index, row.record, self._journal_end
            )
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
                    _store_record(file, index, _unpack(_read_all(self._journal_fd, size, start)))
                file.attrs["complete"] = True
            os.fsync(self._image_fd)
            os.replace(partial, self.path)
            _sync_directory(self.path.parent)
            _journal_path(self.path).unlink()

    def discard(self) -> None:
        """Remove all that was written; a complete file under the final name stays."""
        partial_path(self.path).unlink(missing_ok=True)
        _journal_path(self.path).unlink(missing_ok=True)

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
                f"{self.path}: cannot be written: {_reason(error)}; {done} of "
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
            "before": np.frombuffer(_read_all(self._image_fd, offset, 0), np.uint8),
            "after": np.frombuffer(
                _read_all(self._image_fd, end - offset - size, offset + size), np.uint8
            ),
        }
        os.fsync(self._image_fd)
        os.ftruncate(self._journal_fd, 0)
        self._journal_end = _append_frame(self._journal_fd, _HEAD, _pack(head), 0)
        os.fsync(self._journal_fd)
        self._image_offset = offset

    def _resume(self, head: dict[str, np.ndarray]) -> None:
        """Put the tables back as they were at the start, and find the rows that are whole."""
        self._image_fd = os.open(partial_path(self.path), os.O_RDWR)
        offset, size, end = map(int, head["block"])
        os.ftruncate(self._image_fd, end)
        _reserve(self._image_fd, end)
        _write_all(self._image_fd, head["before"].tobytes(), 0)
        _write_all(self._image_fd, head["after"].tobytes(), offset + size)
        self._image_offset = offset
        row_bytes = _row_bytes(self.recipe.config.shape)
        for index, start, payload in _scan_frames(self._journal_fd):
            self._journal_end = start + len(payload)
            if index == _HEAD:
                continue
            image = _read_all(self._image_fd, row_bytes, offset + index * row_bytes)
            if zlib.crc32(image) == int(_unpack(payload)["image_crc"]):
                self._records[index] = (start, len(payload))
        os.ftruncate(self._journal_fd, self._journal_end)


def open_writer(path: Path, recipe: Recipe, *, restart: bool = False) -> VolumeWriter:
    """Begin ``path``, or pick up where an interrupted process stopped.

    ``restart`` throws away what was begun with another recipe. Raises RecipeMismatchError if
    something was and ``restart`` is not set, and StorageError if another process writes this file
    or the disk has no room.
    """
    journal_fd = _lock_journal(path)
    writer = VolumeWriter(path, recipe, -1, journal_fd)
    try:
        head = _read_head(journal_fd) if partial_path(path).exists() else None
        if head is not None and (old := _differences(head, recipe)):
            if not restart:
                raise RecipeMismatchError(partial_path(path), old)
            head = None
        elif head is None and partial_path(path).exists():
            writer.restarted_because = f"{_journal_path(path)} cannot be read"
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
        raise StorageError(f"{writer.path}: cannot be begun: {_reason(error)}") from error
    except BaseException:
        writer.discard()
        raise


def remove_stray_journal(path: Path) -> None:
    """Remove the journal of a complete file, left by a process killed right after the renaming."""
    if _journal_path(path).exists() and not partial_path(path).exists():
        fd = _lock_journal(path)
        _journal_path(path).unlink()
        os.close(fd)


def _read_head(journal_fd: int) -> dict[str, np.ndarray] | None:
    """Return the first record of a journal, None where there is none."""
    for index, _, payload in _scan_frames(journal_fd):
        return _unpack(payload) if index == _HEAD else None
    return None


def _differences(head: dict[str, np.ndarray], recipe: Recipe) -> list[tuple[str, Any, Any]]:
    return _differing(json.loads(head["recipe"].tobytes()), _recipe_and_versions(recipe))


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
        creation.set_chunk((1, *_chunk_shape(shape)))
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)
        space = h5py.h5s.create_simple((recipe.num_samples, *shape))
        images = h5py.h5d.create(file.id, b"vol_data", h5py.h5t.IEEE_F16LE, space, creation)
        h5py.Dataset(images).attrs["description"] = _IMAGE_TEXT


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
    for name, (dtype, text) in _VOXELS.items():
        voxels = file.create_dataset(
            name,
            (count, *shape),
            dtype,
            chunks=(1, *_chunk_shape(shape)),
            compression="gzip",
            compression_opts=GZIP_LEVEL,
        )
        voxels.attrs["description"] = text
    percentiles = file.create_dataset("vol_percentiles", (count, 2), "<f4")
    percentiles.attrs["description"] = _PERCENTILES_TEXT
    for name, part in _RAGGED.items():
        ragged = file.create_dataset(name, (count,), h5py.vlen_dtype(np.dtype(part.dtype)))
        ragged.attrs["description"] = f"{part.description}; {_usage(name, part.shape)}"
    file.create_group("parameters").attrs["description"] = "drawn for each sample"
    for name, (dtype, item) in _parameter_layout().items():
        values = file.create_dataset("parameters/" + name, (count, *item), dtype)
        values.attrs["description"] = f"{name} of each sample: {_PARAMETER_TEXT}"


def _usage(name: str, shape: tuple[int, ...]) -> str:
    sizes = ", ".join("n" if edge < 0 else str(edge) for edge in shape)
    if len(shape) == 1:
        return f"({sizes},) per sample: f['{name}'][sample]"
    return f"({sizes}) per sample: f['{name}'][sample].reshape{shape}"


def _store_record(file: h5py.File, index: int, record: dict[str, np.ndarray]) -> None:
    shape = file["vol_data"].shape[1:]
    for name in _VOXELS:
        chunks, stream, start = file[name].id, record[name].tobytes(), 0
        sizes = record[name + "_sizes"].tolist()
        for corner, size in zip(_chunk_corners(shape), sizes, strict=True):
            if size:  # a chunk that is not there reads as zeros
                chunks.write_direct_chunk((index, *corner), stream[start : start + size])
            start += size
    for name in ("vol_percentiles", *_RAGGED):
        file[name][index] = record[name]
    for name in _parameter_layout():
        file["parameters"][name][index] = record["parameters/" + name]


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reason(error: Exception) -> str:
    """Return one short line of what an OSError or an error of the HDF5 library says."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        if f"errno = {number}," in str(error):
            return os.strerror(number)
    return " ".join(str(error).split())


# --- Reading --------------------------------------------------------------------------------------


class VolumeFile:
    """A complete file of simulated volumes, opened at the first use, in each process anew.

    Every access raises StorageError, naming the file, if it is missing, truncated, not complete or
    not of this layout. Can be pickled and used as a context manager.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}
        self._pid = -1

    def __len__(self) -> int:
        """Return the number of samples."""
        return int(self._dataset("vol_data").shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of each sample along x, y, z."""
        return self._dataset("vol_data").shape[1:]

    @property
    def config(self) -> VolumeConfig:
        """The configuration that all samples were drawn from."""
        try:
            return VolumeConfig.from_dict(json.loads(self._attribute("configuration")))
        except (TypeError, ValueError) as error:
            raise StorageError(
                f"{self.path}: its configuration is not one of this program's version "
                f"{PROGRAM_VERSION}, the file's is {self.program_version}: {error}"
            ) from error

    @property
    def seed(self) -> int:
        """The seed; sample i comes from ``sample_rng(seed, i)``."""
        return int(self._attribute("seed"))

    @property
    def program_version(self) -> str:
        """The version of the program that simulated the samples."""
        return str(self._attribute("program_version"))

    @property
    def recipe(self) -> Recipe:
        """All that is needed to make this file again."""
        return Recipe(self.config, self.seed, len(self))

    @property
    def complete(self) -> bool:
        """Whether this is a file of this layout with all its samples; never raises for others."""
        try:
            self._open()
        except StorageError:
            return False
        return True

    def read_image(self, index: int, slices: tuple[slice, ...] | None = None) -> np.ndarray:
        """Return the image, or the part of it in ``slices``, as float32."""
        return self._read("vol_data", index, slices).astype(np.float32)

    def read_mask(self, index: int, slices: tuple[slice, ...] | None = None) -> np.ndarray:
        """Return the mask, or the part of it in ``slices``, as uint8: 1 inside any column."""
        return self._read("vol_labels", index, slices)

    def read_instances(self, index: int, slices: tuple[slice, ...] | None = None) -> np.ndarray:
        """Return the instance ids, or those in ``slices``, as uint16: 0 is background."""
        return self._read("vol_instances", index, slices)

    def percentiles(self, index: int) -> tuple[float, float]:
        """Return the 1st and 99th percentile of the whole image."""
        low, high = self._read("vol_percentiles", index)
        return float(low), float(high)

    def parameters(self, index: int) -> VolumeParameters:
        """Return the parameters drawn for one sample."""
        values = {}
        for name in _parameter_layout():
            value = self._read("parameters/" + name, index).tolist()
            values[name] = tuple(value) if isinstance(value, list) else value
        return VolumeParameters(**values)

    def read_volume(self, index: int) -> SimulatedVolume:
        """Return the whole sample as it was simulated, the image rounded to float16."""
        stored = {field.name for field in dataclasses.fields(SimulatedVolume)} & set(_RAGGED)
        ragged = {
            name: self._read(name, index).reshape(part.shape)
            for name, part in _RAGGED.items()
            if name in stored
        }
        return SimulatedVolume(
            image=self.read_image(index),
            instances=self.read_instances(index),
            parameters=self.parameters(index),
            **ragged,
        )

    def close(self) -> None:
        """Close the file; the next access opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._datasets = {}

    def __enter__(self) -> VolumeFile:
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

    def __getstate__(self) -> dict[str, Any]:
        """Return the path only: an open file cannot travel to another process."""
        return {"path": self.path, "_file": None, "_datasets": {}, "_pid": -1}

    def _open(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():
            self._file = _open_complete(self.path)
            self._datasets = {}
            self._pid = os.getpid()
        return self._file

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset, looked up once: that takes as long as reading a small one."""
        file = self._open()
        if name not in self._datasets:
            self._datasets[name] = file[name]
        return self._datasets[name]

    def _attribute(self, name: str) -> Any:
        return self._open().attrs[name]

    def _read(self, name: str, index: int, slices: tuple[slice, ...] | None = None) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: sample {index} is outside 0..{len(self) - 1}")
        try:
            return self._dataset(name)[(index, *(slices or ()))]
        except (OSError, RuntimeError) as error:
            raise StorageError(
                f"{self.path}: {name} of sample {index} cannot be read: {_reason(error)}"
            ) from error


def _open_complete(path: Path) -> h5py.File:
    """Open a file and check that it is complete and of this layout."""
    if path.is_dir():
        raise StorageError(f"{path}: a directory, not a file")
    if not path.exists():
        raise StorageError(f"{path}: no such file; generate_3d_data.py makes one")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise StorageError(f"{path}: truncated or not HDF5: {_reason(error)}") from error
    problem = _layout_problem(file)
    if problem:
        file.close()
        raise StorageError(f"{path}: {problem}")
    return file


def _layout_problem(file: h5py.File) -> str:
    """Return what keeps a file from being read here; empty if nothing does."""
    if not file.attrs.get("complete", True):
        return "not complete; the command that began it picks up where it stopped"
    attributes = ("format_version", "program_version", "configuration", "seed", "complete")
    names = [*LAYOUT, *("parameters/" + name for name in _parameter_layout())]
    missing = [name for name in names if name not in file]
    missing += [f"attribute {name}" for name in attributes if name not in file.attrs]
    if missing:
        return f"not a file of simulated volumes: lacks {', '.join(missing)}"
    if file.attrs["format_version"] != FORMAT_VERSION:
        return f"format version {file.attrs['format_version']}; this program reads {FORMAT_VERSION}"
    shapes = {name: file[name].shape for name in ("vol_data", *_VOXELS)}
    if len(set(shapes.values())) != 1 or len(shapes["vol_data"]) != 4:
        return f"images and labels differ in shape: {shapes}"
    return ""
