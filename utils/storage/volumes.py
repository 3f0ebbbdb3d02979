"""The HDF5 file of simulated volumes: what decides its contents, its layout, writing and reading.

Labels and images of a row are cut into chunks of ``CHUNK_EDGE`` voxels an edge, in the order of
their corners; those at the far borders are filled up with zeros. Axis order is (x, y, z).
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import typing
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.errors import UserError, hdf5_errors
from utils.grey_values import GreyCounts, find_limits
from utils.provenance import DATA_VERSION, VOLUME_FORMAT
from utils.simulation.imaging import MOST_STORED
from utils.simulation.sheet import DEPTHS
from utils.simulation.streams import check_seed
from utils.simulation.volume import (
    Config,
    SimulatedVolume,
    VolumeParameters,
    WideConfig,
    WideParameters,
    WideVolume,
    config_from_dict,
    preset_of,
    sample_rng,
    simulate_volume,
)
from utils.storage.files import (
    GZIP_LEVEL,
    describe,
    differing,
    format_problem,
    new_hdf5_file,
    open_checked,
)

CHUNK_EDGE = 32  # voxels; the fastest of 16, 32 and 64 (``benchmarks/bench_storage.py``)
VOXELS = {
    "vol_labels": ("u1", "mask, (sample, x, y, z): 1 inside any column, left-out ones too"),
    "vol_instances": (
        "<u2",
        "instances, (sample, x, y, z): 0 background, k + 1 inside column k of this sample",
    ),
}
Ragged = Mapping[str, tuple[str, tuple[int, ...], str]]
"""Datasets with a flat array of its own length in each row: dtype, the shape that restores the
array, and what it holds."""
RAGGED: Ragged = {
    "points": ("<f4", (-1, 3), "mid-points of the columns, unit cube"),
    "entry_points": ("<f4", (-1, 3), "entry points of the columns, unit cube"),
    "e_r": ("<f4", (-1, 3), "column axes, outward; their norm scales lengths along them"),
    "e_theta": ("<f4", (-1, 3), "second vectors of the columns' frames"),
    "e_phi": ("<f4", (-1, 3), "third vectors of the columns' frames"),
    "column_type": ("u1", (-1,), "0 left out of the image, 1 dense, 2 clumped, 3 ring"),
    "control_points": ("<f4", (4, -1, 3), "Bezier control points of the neurites"),
    "lattice_coordinates": ("<i4", (-1, 3), "icosahedron face 0..19 and grid (i, j) on it"),
    "lattice_neighbours": ("<i4", (-1, 2), "pairs (k, l), k < l, of neighbouring columns"),
}


@dataclass(frozen=True)
class Kind:
    """What a file of a preset holds of each volume."""

    volume: type[SimulatedVolume]
    parameters: type[VolumeParameters | WideParameters]
    ragged: Ragged


REFERENCE = Kind(SimulatedVolume, VolumeParameters, RAGGED)
WIDE = Kind(
    WideVolume,
    WideParameters,
    {
        **RAGGED,
        "entry_points": ("<f4", (-1, 3), "proximal ends of the columns, unit cube"),
        "e_r": ("<f4", (-1, 3), "from the proximal to the distal ends, unit cube"),
        "column_type": ("u1", (-1,), "0 not stained, 1 stained"),
        "lattice_coordinates": ("<i4", (-1, 3), "chart, p, q; charts are sheets of their own"),
        "paths": (
            "<f4",
            (-1, 3),
            "nodes of the paths, column by column and as many of each, "
            "proximal to distal, voxels; the centre of voxel i is i + 0.5",
        ),
        "path_spacing": (
            "<f4",
            (-1,),
            "of each node the distance to the nearest other column at that depth, voxels",
        ),
    },
)


def chunk_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the chunks of a volume; a smaller volume is one chunk."""
    return tuple(min(CHUNK_EDGE, edge) for edge in shape)


def chunks_of(array: np.ndarray) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield the first voxel of each chunk, and the chunk; at the far borders zeros fill it up."""
    size = chunk_shape(array.shape)
    for corner in itertools.product(*map(range, (0,) * array.ndim, array.shape, size)):
        part = array[tuple(slice(at, at + edge) for at, edge in zip(corner, size, strict=True))]
        chunk = np.zeros(size, array.dtype)
        chunk[tuple(map(slice, part.shape))] = part
        yield corner, chunk


@functools.cache
def parameter_layout(
    parameters: type[VolumeParameters | WideParameters],
) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Return dtype and shape of each field: int, float, tuples of either, and text."""
    layout: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
    dtypes = {int: np.dtype("<i8"), float: np.dtype("<f8"), str: h5py.string_dtype()}
    for name, hint in typing.get_type_hints(parameters).items():
        items = typing.get_args(hint)
        layout[name] = (dtypes[items[0] if items else hint], (len(items),) if items else ())
    return layout


@dataclass(frozen=True)
class EncodedRow:
    """One sample, rounded and compressed."""

    image: np.ndarray  # (X, Y, Z) float16
    chunks: dict[str, list[tuple[tuple[int, ...], bytes]]]
    """Of each dataset of labels the compressed chunks, which begin at a voxel, that hold any."""
    values: dict[str, np.ndarray | str]  # what goes into the row of each other dataset


def encode_row(volume: SimulatedVolume) -> EncodedRow:
    """Round the image to float16, compress the labels, and flatten the rest.

    Pure; meant for the worker: compressing there leaves the one process that writes little to do.
    Intensities above 65504, the largest float16, are set to it. Raises UserError if the image is
    negative or not finite anywhere.
    """
    image, percentiles = stored_image(volume.image)
    filled = [c for c in chunks_of(np.asarray(volume.instances, "<u2")) if c[1].any()]
    chunks = {
        "vol_labels": [(corner, zlib.compress(c > 0, GZIP_LEVEL)) for corner, c in filled],
        "vol_instances": [(corner, zlib.compress(c, GZIP_LEVEL)) for corner, c in filled],
    }
    kind = WIDE if isinstance(volume, WideVolume) else REFERENCE
    values: dict[str, np.ndarray | str] = {"vol_percentiles": percentiles}
    for name, (stored, _, _) in kind.ragged.items():
        values[name] = np.asarray(getattr(volume, name), stored).ravel()
    for name, (dtype, shape) in parameter_layout(kind.parameters).items():
        value = getattr(volume.parameters, name)
        text = isinstance(value, str)
        values["parameters/" + name] = value if text else np.asarray(value, dtype).reshape(shape)
    return EncodedRow(image, chunks, values)


def stored_image(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an image as the file holds it, float16, and the grey values that become 0 and 1.

    These are (2,) float32, by the rule ``robust`` of ``utils.grey_values``. Raises UserError if the
    image is negative or not finite.
    """
    if not image.min() >= 0 or not image.max() < np.inf:
        raise UserError("an image must be finite and nowhere negative; use milder parameters")
    rounded = np.minimum(image, np.float32(MOST_STORED)).astype("<f2")
    limits = find_limits(GreyCounts(lambda: [rounded], rounded.dtype), 1.0, 99.0, "robust")
    return rounded, np.array([limits.low, limits.high], "<f4")


@dataclass(frozen=True)
class VolumeSet:
    """All that decides a file's contents: sample i is simulated with ``sample_rng(seed, i)``.

    Raises UserError for a seed that is none.
    """

    config: Config
    seed: int
    num_samples: int

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return all parameters by name in plain JSON types."""
        return {**self.config.to_dict(), "seed": self.seed, "num_samples": self.num_samples}

    def differences(self, asked: VolumeSet) -> list[tuple[str, Any, Any]]:
        """Return (name, value here, value asked for) of each parameter that differs.

        Fields of a part are named as part.field; of different presets the names alone are told.
        """
        presets = preset_of(self.config), preset_of(asked.config)
        if presets[0] != presets[1]:
            return [("preset", *presets)]
        return differing(self.to_dict(), asked.to_dict())


def disk_space(volume_set: VolumeSet) -> int:
    """Return an upper estimate of a file's bytes.

    Images are stored as they are; labels were measured at 2 to 4 % of them (128 voxels an edge),
    twice that is allowed for. The frames of 400 columns take 64 KiB. Wide volumes are allowed more
    labels, and two sheets, each as large as a face of the volume and as curved as half a sphere.
    """
    config = volume_set.config
    pairs = zip(config.shape, chunk_shape(config.shape), strict=True)
    image = 2 * math.prod(-(-edge // chunk) * chunk for edge, chunk in pairs)  # in full chunks
    row = 1.08 * image + (1 << 16)
    if isinstance(config, WideConfig):
        nodes = DEPTHS if config.table is None else config.table.nodes.shape[1]
        columns = 8 * (max(config.shape) / config.sheet.spacing[0] + 1) ** 2
        row += 0.08 * image + min(columns, 1 << 16) * (128 + 16 * nodes)
    return int(volume_set.num_samples * row) + (1 << 20)


def write_simulated_file(
    path: Path, volume_set: VolumeSet, rows: Iterable[EncodedRow] | None = None
) -> None:
    """Write all ``rows`` of a file, or simulate them in this process, one after the other.

    The file gets its name when it is complete; before, what had that name stays, and after an error
    nothing else is left. Raises UserError, naming the file, if it cannot be written or another
    process writes it, and ValueError for rows that are missing.
    """
    if rows is None:
        rngs = (sample_rng(volume_set.seed, index) for index in range(volume_set.num_samples))
        rows = (encode_row(simulate_volume(volume_set.config, rng)) for rng in rngs)
    with new_hdf5_file(path, lambda f: _lay_out(f, volume_set), disk_space(volume_set)) as file:
        images, written = file["vol_data"], 0
        for row in rows:
            with hdf5_errors(path, "cannot be written"):
                images[written] = row.image
                for name, chunks in row.chunks.items():
                    for corner, chunk in chunks:  # one that is not there reads as zeros
                        file[name].id.write_direct_chunk((written, *corner), chunk)
                for name, value in row.values.items():
                    file[name][written] = value
            written += 1
        if written < volume_set.num_samples:
            raise ValueError(f"{path}: {written} of {volume_set.num_samples} samples were written")
        file.attrs["complete"] = True


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
        sizes = ", ".join("n" if edge < 0 else str(edge) for edge in item)
        sizes, reshaped = (f"{sizes},", "") if len(item) == 1 else (sizes, f".reshape{item}")
        usage = f"({sizes}) per sample: f['{name}'][sample]{reshaped}"
        add(name, f"{text}; {usage}", (), h5py.vlen_dtype(np.dtype(dtype)))
    file.create_group("parameters").attrs["description"] = "drawn for each sample"
    for name, (dtype, item) in parameter_layout(kind.parameters).items():
        text = f"{name} of each sample: lengths in edges of the unit cube, angles in radians"
        add(f"parameters/{name}", text, item, dtype)


class VolumeFile(AbstractContextManager):
    """A complete file of simulated volumes, opened at the first use, in each process anew.

    Every access raises UserError, naming the file, if it is missing, truncated, not complete or
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
    def config(self) -> Config:
        """The configuration that all samples were drawn from."""
        text = self._attribute("configuration")
        try:
            return config_from_dict(json.loads(text))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.path}: its configuration is not one of this program's version "
                f"{DATA_VERSION}, the file's is {self.program_version}: {error}"
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
    def volume_set(self) -> VolumeSet:
        """All that is needed to make this file again."""
        config, seed, count = self.config, self.seed, len(self)
        try:
            return VolumeSet(config, seed, count)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error

    @property
    def complete(self) -> bool:
        """Whether this is a file of this layout with all its samples; never raises for others."""
        try:
            self._open()
        except UserError:
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
        """Return the grey values of the whole image that become 0 and 1."""
        low, high = self._read("vol_percentiles", index)
        return float(low), float(high)

    def parameters(self, index: int) -> VolumeParameters | WideParameters:
        """Return the parameters drawn for one sample."""
        values: dict[str, Any] = {}
        kind = _kind(self._open()).parameters
        for name in parameter_layout(kind):
            value = self._read("parameters/" + name, index)
            value = value.decode() if isinstance(value, bytes) else value.tolist()
            values[name] = tuple(value) if isinstance(value, list) else value
        return kind(**values)

    def read_volume(self, index: int) -> SimulatedVolume:
        """Return the whole sample as it was simulated, the image rounded to float16."""
        kind = _kind(self._open())
        ragged = {
            name: self._read(name, index).reshape(shape)
            for name, (_, shape, _) in kind.ragged.items()
            if name != "points"  # which a volume has of its entry points and axes
        }
        for name in ("paths", "path_spacing") if kind is WIDE else ():
            array = ragged[name]
            ragged[name] = array.reshape(len(ragged["entry_points"]), -1, *array.shape[1:])
        return kind.volume(
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

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __reduce__(self) -> tuple[type[VolumeFile], tuple[Path]]:
        """Return how to make it of the path: an open file cannot travel to another process."""
        return VolumeFile, (self.path,)

    def _open(self) -> h5py.File:
        if self._file is None or self._pid != os.getpid():
            self._file = open_checked(self.path, _layout_problem)
            self._datasets = {}
            self._pid = os.getpid()
        return self._file

    def _dataset(self, name: str) -> h5py.Dataset:
        """Return a dataset, looked up once: that takes as long as reading a small one."""
        file = self._open()
        if name not in self._datasets:
            with hdf5_errors(self.path):
                self._datasets[name] = file[name]
        return self._datasets[name]

    def _attribute(self, name: str) -> Any:
        with hdf5_errors(self.path):
            return self._open().attrs[name]

    def _read(self, name: str, index: int, slices: tuple[slice, ...] | None = None) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path}: sample {index} is outside 0..{len(self) - 1}")
        with hdf5_errors(self.path, f"{name} of sample {index} cannot be read"):
            return self._dataset(name)[(index, *(slices or ()))]


def _kind(file: h5py.File) -> Kind:
    return WIDE if "paths" in file else REFERENCE


def _layout_problem(file: h5py.File) -> str:
    """Return what keeps a file from being read here; empty if nothing does."""
    if not file.attrs.get("complete", True):
        return "not complete: the command that began it makes it anew"
    attributes = ("format_version", "program_version", "configuration", "seed", "complete")
    parameters = parameter_layout(_kind(file).parameters)
    names = ["vol_data", *VOXELS, "vol_percentiles", *_kind(file).ragged, "parameters"]
    names += ["parameters/" + name for name in parameters]
    if problem := format_problem(file, "volumes", names, attributes, VOLUME_FORMAT):
        return problem
    shapes = {name: file[name].shape for name in ("vol_data", *VOXELS)}
    if len(set(shapes.values())) != 1 or len(shapes["vol_data"]) != 4:
        return f"images and labels differ in shape: {shapes}"
    return ""
