"""What HDF5 files of volumes and of images share: making one that appears whole, and opening it."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from utils.errors import UserError, disk_errors, hdf5_errors
from utils.provenance import DATA_VERSION
from utils.replacing import only_writer, renaming
from utils.simulation.configuration import PlainConfig

GZIP_LEVEL = 3  # masks are read fastest; a fifth smaller than 1, and 6 takes twice as long
_LIBVER = ("v110", "v110")


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
        with disk_errors(path, "written"), temporary.open("wb") as raw:
            raw.write(empty)
            raw.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(raw.fileno(), 0, room)  # HDF5 cuts off what is not used
            else:  # macOS
                for _ in range(len(empty), room, 1 << 20):
                    raw.write(bytes(1 << 20))
        with hdf5_errors(path, "cannot be written"):
            file = h5py.File(temporary, "r+", libver=_LIBVER, locking=False)
        try:
            yield file
        finally:
            with hdf5_errors(path, "cannot be written"):
                file.close()


def in_words(size: int) -> str:
    """Return a number of bytes in GB or MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


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


def version_note(path: Path, version: str) -> str:
    """Return what to tell who reads a file of another version; nothing for one of this version."""
    if version == DATA_VERSION:
        return ""
    return (
        f"{path} was made by version {version} of the simulation and is read as it is; "
        f"this version, {DATA_VERSION}, makes other samples of the same parameters"
    )


def differing(old: Mapping, new: Mapping, part: str = "") -> list[tuple[str, Any, Any]]:
    """Return (name, old value, new value) of all entries that differ, None where one is missing."""
    found: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*old, *new]):
        values = old.get(name), new.get(name)
        if all(isinstance(value, dict) for value in values):
            found += differing(*values, f"{part}{name}.")
        elif values[0] != values[1]:
            found.append((part + name, *values))
    return found
