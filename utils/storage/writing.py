"""Writing a file under a temporary name; it gets its own when it is complete."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.errors import UserError, disk_errors, hdf5_errors
from utils.provenance import DATA_VERSION, VOLUME_FORMAT
from utils.replacing import only_writer, renaming
from utils.simulation.configuration import PlainConfig
from utils.simulation.volume import WideConfig, sample_rng, simulate_volume
from utils.storage.layout import GZIP_LEVEL, REFERENCE, VOXELS, WIDE, chunk_shape, parameter_layout
from utils.storage.rows import EncodedRow, encode_row
from utils.storage.volume_set import VolumeSet, disk_space

_LIBVER = ("v110", "v110")


class VolumeWriter:
    """Appends encoded rows to a file that :func:`new_volume_file` laid out."""

    def __init__(self, path: Path, file: h5py.File) -> None:
        self._path = path
        self._file = file
        self._images: h5py.Dataset = file["vol_data"]
        self.num_written = 0

    def append(self, row: EncodedRow) -> None:
        """Write the next sample; UserError, naming the file, if the disk fails."""
        index = self.num_written
        with hdf5_errors(self._path, "cannot be written"):
            self._images[index] = row.image
            for name, chunks in row.chunks.items():
                for corner, chunk in chunks:  # one that is not there reads as zeros
                    self._file[name].id.write_direct_chunk((index, *corner), chunk)
            for name, value in row.values.items():
                self._file[name][index] = value
        self.num_written += 1


@contextmanager
def new_volume_file(path: Path, volume_set: VolumeSet) -> Iterator[VolumeWriter]:
    """Lay out ``path`` under a temporary name; it gets its own when the block ends without error.

    Otherwise nothing is left, and what had that name stays. Raises UserError, naming the file, if
    it cannot be written or another process writes it, and ValueError if the block leaves out rows.
    """
    with new_hdf5_file(path, lambda file: _lay_out(file, volume_set), disk_space(volume_set)) as f:
        writer = VolumeWriter(path, f)
        yield writer
        if writer.num_written < volume_set.num_samples:
            raise ValueError(
                f"{path}: {writer.num_written} of {volume_set.num_samples} samples were written"
            )
        f.attrs["complete"] = True


def write_simulated_file(path: Path, volume_set: VolumeSet) -> None:
    """Simulate and write a whole file in this process; generate_3d_data.py does it in many."""
    with new_volume_file(path, volume_set) as writer:
        for index in range(volume_set.num_samples):
            rng = sample_rng(volume_set.seed, index)
            writer.append(encode_row(simulate_volume(volume_set.config, rng)))


@contextmanager
def new_hdf5_file(
    path: Path, lay_out: Callable[[h5py.File], None], room: int
) -> Iterator[h5py.File]:
    """Yield a file with what ``lay_out`` puts in; it gets the name ``path`` when the block ends.

    ``room`` bytes of the disk are claimed first: HDF5 ends the process in a segmentation fault when
    a disk is full. Equal contents give equal bytes: no time is stored.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file, such as {path}/images.h5")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist; make it first")
    with only_writer(path), renaming(path) as temporary:
        with h5py.File.in_memory(libver=_LIBVER) as file:
            lay_out(file)
            file.flush()
            empty = file.id.get_file_image()
        free = shutil.disk_usage(path.parent).free
        if room > free:
            raise UserError(f"{path}: about {in_words(room)} are needed, {in_words(free)} are free")
        with disk_errors(path, "written"):
            _begin(temporary, empty, room)
        with hdf5_errors(path, "cannot be written"):
            file = h5py.File(temporary, "r+", libver=_LIBVER, locking=False)
        try:
            yield file
        finally:
            with hdf5_errors(path, "cannot be written"):
                file.close()


def describe(
    file: h5py.File, what: str, version: int, config: PlainConfig, seed: int, count: int
) -> None:
    """Write the attributes from which all samples of a file can be made again."""
    file.attrs["description"] = f"Simulated {what} of the fly's optic lobe with exact labels."
    file.attrs["format_version"] = version
    file.attrs["program_version"] = DATA_VERSION
    file.attrs["configuration"] = json.dumps(config.to_dict())
    file.attrs["seed"] = seed
    file.attrs["num_samples"] = count


def in_words(size: int) -> str:
    """Return a number of bytes in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _begin(temporary: Path, empty: bytes, room: int) -> None:
    """Write an ``empty`` HDF5 file and claim ``room`` bytes, which HDF5 cuts off if unused."""
    with temporary.open("wb") as file:
        file.write(empty)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, room)
        else:  # macOS
            for _ in range(len(empty), room, 1 << 20):
                file.write(bytes(1 << 20))


def _lay_out(file: h5py.File, volume_set: VolumeSet) -> None:
    """Write the attributes and make room for all rows."""
    count, shape = volume_set.num_samples, volume_set.config.shape
    describe(file, "volumes", VOLUME_FORMAT, volume_set.config, volume_set.seed, count)
    file.attrs["complete"] = False
    chunks = (1, *chunk_shape(shape))

    def add(name: str, text: str, shape: tuple[int, ...], dtype: Any, **options: Any) -> None:
        dataset = file.create_dataset(name, (count, *shape), dtype, **options)
        dataset.attrs["description"] = text

    text = "image, (sample, x, y, z), raw intensities"
    add("vol_data", text, shape, "<f2", chunks=chunks)
    for name, (dtype, text) in VOXELS.items():
        add(name, text, shape, dtype, chunks=chunks, compression=GZIP_LEVEL)
    text = "grey values of each image as stored that become 0 and 1, by the rule robust"
    add("vol_percentiles", text, (2,), "<f4")
    kind = WIDE if isinstance(volume_set.config, WideConfig) else REFERENCE
    for name, (dtype, item, text) in kind.ragged.items():
        add(name, f"{text}; {_usage(name, item)}", (), h5py.vlen_dtype(np.dtype(dtype)))
    file.create_group("parameters").attrs["description"] = "drawn for each sample"
    for name, (dtype, item) in parameter_layout(kind.parameters).items():
        text = f"{name} of each sample: lengths in edges of the unit cube, angles in radians"
        add(f"parameters/{name}", text, item, dtype)


def _usage(name: str, shape: tuple[int, ...]) -> str:
    sizes = ", ".join("n" if edge < 0 else str(edge) for edge in shape)
    if len(shape) == 1:
        return f"({sizes},) per sample: f['{name}'][sample]"
    return f"({sizes}) per sample: f['{name}'][sample].reshape{shape}"
