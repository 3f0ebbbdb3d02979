"""Reading a complete file: whole samples and parts of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from utils.errors import UserError, hdf5_errors
from utils.provenance import DATA_VERSION, VOLUME_FORMAT
from utils.simulation.volume import (
    Config,
    SimulatedVolume,
    VolumeParameters,
    WideParameters,
    config_from_dict,
)
from utils.storage.layout import REFERENCE, VOXELS, WIDE, Kind, parameter_layout
from utils.storage.volume_set import VolumeSet


class VolumeFile:
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

    def __enter__(self) -> VolumeFile:
        """Return itself; leaving the block closes."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return the path only: an open file cannot travel to another process."""
        return {"path": self.path, "_file": None, "_datasets": {}, "_pid": -1}

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


def open_checked(path: Path, find_problem: Callable[[h5py.File], str]) -> h5py.File:
    """Open a file in which ``find_problem`` finds none; its words for one become a UserError."""
    if not path.exists():
        raise UserError(f"{path}: no such file; generate_3d_data.py makes one")
    with hdf5_errors(path, "truncated or not HDF5"):
        file = h5py.File(path, "r")
    try:
        with hdf5_errors(path, "damaged"):
            problem = find_problem(file)
        if problem:
            raise UserError(f"{path}: {problem}")
    except BaseException:
        file.close()
        raise
    return file


def format_problem(
    file: h5py.File, what: str, names: Iterable[str], attributes: Iterable[str], version: int
) -> str:
    """Return that a file lacks datasets or attributes or is of another version; empty if not."""
    missing = [name for name in names if name not in file]
    missing += [f"attribute {name}" for name in attributes if name not in file.attrs]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return f"not a file of simulated {what}: lacks {', '.join(missing[:3])}{more}"
    if file.attrs["format_version"] != version:
        return f"format version {file.attrs['format_version']}; this program reads {version}"
    return ""


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
