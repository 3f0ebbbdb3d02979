"""Stacks as microscopes and other programs leave them: read slab by slab, written by their ending.

Arrays are (X, Y, Z), or (X, Y) for images, whatever order a file keeps them in, and spacings are
micrometres along those axes. A slab is a range of the last axis. Every reader and writer is a
library's: tifffile, h5py, pynrrd, nibabel, zarr and numpy; none of them is let run code from a
file. Files are written under a temporary name and renamed when complete.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from utils.storage import StorageError, VolumeFile

ENDINGS = {
    ".tif": "tiff",
    ".tiff": "tiff",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nrrd": "nrrd",
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".zarr": "zarr",
    ".npy": "numpy",
}
"""File endings and the formats that they mean; ``.ome.tif`` and ``.ome.zarr`` are among them."""
MICROMETRES = {
    **dict.fromkeys(("um", "µm", "μm", "\\u00b5m", "micron", "microns"), 1.0),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    "inch": 25400.0,
}
"""Length of a unit, by the names that files use for it."""
TIFF_DAMAGE = re.compile("invalid (page|value) offset|corrupted|failed to reshape")
"""What tifffile logs where a file is cut before it goes on with the pages that are left."""
MOST_CHANNELS = 4
"""Entries up to which a last axis of unnamed axes is taken for channels, as in RGB and RGBA."""


class StackError(ValueError):
    """A stack that cannot be read or written; one line that names the file and the remedy."""


@dataclass(frozen=True)
class Stack:
    """One grey-value stack or image in a file; made by :func:`open_stack`, closed after use."""

    path: Path
    shape: tuple[int, ...]
    """Voxels along x, y, z (or x, y)."""
    dtype: np.dtype
    """What :meth:`read` returns: whole numbers of 8 or 16 bits, float16 or float32."""
    spacing: tuple[float, ...] | None
    """Edge of a voxel in micrometres along each axis; None if nobody knows."""
    axes: str
    """Order of the spatial axes in the file, slowest first, such as ``ZYX``."""
    channel: int | None
    """Which of the file's channels this is, from 0; None if it has no channels."""
    in_memory: bool
    """Whether the format could only be read as a whole."""
    placement: Mapping[str, Any] = field(repr=False)
    """Where the format puts the stack in space; carried to an output of the same format."""
    part: Callable[[int, int], np.ndarray] = field(repr=False)
    """Reads a slab in (X, Y, Z) order and the file's dtype; :meth:`read` is for everyone else."""
    close: Callable[[], None] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole stack in ``dtype``."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the slab ``start <= z < stop`` (y of an image) as (X, Y, stop - start).

        Raises StackError where the file is cut or damaged.
        """
        stop = self.shape[-1] if stop is None else stop
        with _reading(self.path):
            slab = np.asarray(self.part(start, stop))
            if slab.shape != (*self.shape[:-1], stop - start):
                raise StackError(f"{self.path}: holds fewer voxels than its header says; it is cut")
            return slab.astype(self.dtype, copy=False)

    def __enter__(self) -> Stack:
        """Return itself; leaving the block closes the file."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()


@dataclass(frozen=True)
class StackLayout:
    """All that an output is made from beside its voxels; names as in :class:`Stack`."""

    shape: tuple[int, ...]
    dtype: np.dtype
    spacing: tuple[float, ...] | None = None
    axes: str = "ZYX"
    """Order of the axes in formats that know no order of their own (HDF5 and NumPy)."""
    placement: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def like(cls, stack: Stack, dtype: Any) -> StackLayout:
        """Return the layout of a result with the voxels of ``stack``."""
        return cls(stack.shape, np.dtype(dtype), stack.spacing, stack.axes, stack.placement)

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Source:
    """An array in a file with what its format says of it, before a channel is chosen."""

    array: Any
    """Has shape, dtype, and a ``__getitem__`` that takes a tuple of whole numbers and slices."""
    axes: str | None
    """A letter an axis: X, Y, Z, C or S (channels), T (time), N (sample); None if unknown."""
    spacing: Mapping[str, float] = field(default_factory=dict)
    """Micrometres by axis letter."""
    in_memory: bool = False
    placement: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = lambda: None


def format_of(path: str | Path) -> str:
    """Return the format that the ending of ``path`` means; StackError for an unknown one."""
    name = Path(path).name.lower()
    for ending, kind in ENDINGS.items():
        if name.endswith(ending):
            return kind
    raise StackError(f"{path}: unknown ending; the known ones are {', '.join(ENDINGS)}")


# --- Reading --------------------------------------------------------------------------------------


def open_stack(
    path: str | Path,
    *,
    channel: int | None = None,
    voxel_size: Sequence[float] | None = None,
    key: str | None = None,
    index: int | None = None,
) -> Stack:
    """Open one stack or image for reading by slabs.

    Args:
        path: a file of one of :data:`ENDINGS`; a folder for Zarr and OME-Zarr.
        channel: which channel, from 0; needed where there are several.
        voxel_size: edge of a voxel along z, y, x (or y, x) in micrometres; overrides the file's.
        key: name of the array inside HDF5 or Zarr; needed where there are several.
        index: which time point, or which sample of a file of simulated volumes, from 0.

    Raises:
        StackError: for a file that is missing, damaged, of an unknown format or without what was
            asked for.
    """
    path = Path(path)
    kind = format_of(path)
    _check_present(path, folder=kind == "zarr")
    if key is not None and kind not in ("hdf5", "zarr"):
        raise StackError(f"{path}: has one array only; --key {key!r} is for HDF5 and Zarr")
    with _reading(path):
        source = _READERS[kind](path, key)
        try:
            return _select(path, source, channel, voxel_size, index)
        except BaseException:
            source.close()
            raise


def _check_present(path: Path, folder: bool) -> None:
    if not path.exists():
        raise StackError(f"{path}: no such file")
    if path.is_dir() != folder:
        what = "a file, where a folder is expected" if folder else "a folder, not a file"
        raise StackError(f"{path}: {what}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a format's library raises about a broken file into one StackError.

    The libraries parse what may be any bytes, and raise nearly every kind of exception on the way;
    what they would warn of or log is said by that error or harmless.
    """
    try:
        with warnings.catch_warnings(), _quiet("nibabel.global"), _quiet("tifffile"):
            warnings.simplefilter("ignore")
            yield
    except StackError:
        raise
    except StorageError as error:
        raise StackError(str(error)) from error
    except PermissionError as error:
        raise StackError(f"{path}: may not be read ({error.strerror})") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise StackError(
            f"{path}: damaged, cut or not of its ending's format ({reason})"
        ) from error


class _Errors(logging.Handler):
    """Collects messages."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one message."""
        self.messages.append(record.getMessage())


@contextmanager
def _quiet(name: str) -> Iterator[list[str]]:
    """Keep what a logger says from the user; yield the list to which its errors are added."""
    handler = _Errors(logging.ERROR)
    logger = logging.getLogger(name)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.messages
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _select(
    path: Path,
    source: _Source,
    channel: int | None,
    voxel_size: Sequence[float] | None,
    index: int | None,
) -> Stack:
    """Choose channel and time point, and lay the rest out as (X, Y, Z)."""
    dtype = _working_dtype(path, source.array.dtype)
    shape = tuple(int(length) for length in source.array.shape)
    if 0 in shape:
        raise StackError(f"{path}: holds no voxels: its shape is {shape}")
    axes = source.axes or _guess_axes(path, shape)
    chosen: dict[int, int] = {}
    asked = {"CS": (channel, "channel", "channels"), "TN": (index, "index", "time points")}
    for letters, (wanted, flag, what) in asked.items():
        found = [k for k, letter in enumerate(axes) if letter in letters]
        many = [k for k in found if shape[k] > 1]
        if len(many) > 1:
            raise StackError(f"{path}: its axes {axes} of lengths {shape} cannot be told apart")
        chosen.update(dict.fromkeys(found, 0))
        noun = "samples" if "N" in axes else what
        if many:
            chosen[many[0]] = _pick(path, wanted, shape[many[0]], flag, noun)
        elif wanted:
            raise StackError(f"{path}: --{flag} {wanted}: the file has no {noun} to choose from")
    flat = [k for k, a in enumerate(axes) if a == "Z" and shape[k] == 1]
    chosen.update(dict.fromkeys(flat, 0))
    spatial = "".join(a for k, a in enumerate(axes) if k not in chosen)
    if sorted(spatial) not in (["X", "Y"], ["X", "Y", "Z"]):
        raise StackError(f"{path}: its axes {axes} of lengths {shape} are not those of a stack")
    order = [spatial.index(a) for a in "XYZ" if a in spatial]
    lengths = [shape[axes.index(a)] for a in "XYZ" if a in spatial]
    last = axes.index("Z" if "Z" in spatial else "Y")

    def part(start: int, stop: int) -> np.ndarray:
        where = [chosen.get(k, slice(None)) for k in range(len(axes))]
        where[last] = slice(start, stop)
        return np.asarray(source.array[tuple(where)]).transpose(order)

    named = next((k for k, a in enumerate(axes) if a in "CS" and shape[k] > 1), None)
    return Stack(
        path=path,
        shape=tuple(lengths),
        dtype=dtype,
        spacing=_spacing(path, voxel_size, source.spacing, spatial),
        axes=spatial,
        channel=None if named is None else chosen[named],
        in_memory=source.in_memory,
        placement=source.placement,
        part=part,
        close=source.close,
    )


def _working_dtype(path: Path, dtype: Any) -> np.dtype:
    """Return the dtype to compute with: short ones as they are, others as float32."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind not in "uif":
        raise StackError(f"{path}: holds {dtype}, not grey values")
    if dtype.itemsize > 2:
        return np.dtype(np.float32)
    return dtype.newbyteorder("=")


def _pick(path: Path, wanted: int | None, count: int, flag: str, what: str) -> int:
    if wanted is None:
        raise StackError(f"{path}: holds {count} {what}; name one with --{flag} 0..{count - 1}")
    if not 0 <= wanted < count:
        raise StackError(f"{path}: --{flag} {wanted}: the file's {what} are 0..{count - 1}")
    return wanted


def _guess_axes(path: Path, shape: tuple[int, ...]) -> str:
    """Return the usual order for arrays whose file does not name their axes."""
    colours = len(shape) > 2 and shape[-1] in (3, MOST_CHANNELS) and min(shape[-3:-1]) > shape[-1]
    names = {2: "YX", 3: "YXC", 4: "ZYXC"} if colours else {2: "YX", 3: "ZYX", 4: "CZYX"}
    if len(shape) not in names:
        raise StackError(f"{path}: an array of {len(shape)} axes without names is no stack")
    return names[len(shape)]


def _spacing(
    path: Path, voxel_size: Sequence[float] | None, known: Mapping[str, float], spatial: str
) -> tuple[float, ...] | None:
    """Return micrometres along x, y, z: the user's, else the file's if it has all of them."""
    letters = [a for a in "XYZ" if a in spatial]
    if voxel_size is not None:
        if len(voxel_size) != len(letters):
            raise StackError(
                f"{path}: has {len(letters)} axes in space, but --voxel_size has {len(voxel_size)} "
                f"numbers; give {','.join(reversed(letters)).lower()}"
            )
        return tuple(float(size) for size in reversed(voxel_size))
    sizes = [float(known.get(letter, math.nan)) for letter in letters]
    return tuple(sizes) if all(math.isfinite(s) and s > 0 for s in sizes) else None


class _Reopened:
    """An array of a file that is mapped for each access anew, so that what was read is let go."""

    def __init__(self, load: Callable[[], np.ndarray]) -> None:
        self.load = load
        array = load()
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, where: tuple[Any, ...]) -> np.ndarray:
        return np.array(self.load()[where])


def _read_tiff(path: Path, key: str | None) -> _Source:
    import tifffile

    file = tifffile.TiffFile(path)
    try:
        with _quiet("tifffile") as messages:
            found = list(file.series)
        damage = [text for text in messages if TIFF_DAMAGE.search(text)]
        if damage or not found:
            raise StackError(f"{path}: cut or damaged ({[*damage, 'holds no image'][0]})")
        series = found[0]
        axes = _tiff_axes(series.axes)
        spacing = _tiff_spacing(file)
        if series.dataoffset is not None:
            array: Any = _Reopened(lambda: tifffile.memmap(path, series=0, mode="r"))
        else:
            import zarr

            _check_segments(path, series)
            array = zarr.open_array(series.aszarr(level=0), mode="r")
    except BaseException:
        file.close()
        raise
    return _Source(array, axes, spacing, close=file.close)


def _tiff_axes(axes: str) -> str:
    """Return tifffile's letters with an unnamed sequence of pages (Q or I) taken for z."""
    return re.sub("[QI]", "Z", axes, count=1) if "Z" not in axes else axes


def _check_segments(path: Path, series: Any) -> None:
    """Raise StackError if a page lies beyond the file's end: it would be read as zeros."""
    for page in series.pages:
        if page is None:
            raise StackError(f"{path}: lacks a page, or a neighbouring file that it refers to")
        ends = [a + n for a, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > page.parent.filehandle.size:
            raise StackError(f"{path}: cut: its header speaks of more bytes than there are")


def _tiff_spacing(file: Any) -> dict[str, float]:
    """Return what OME or ImageJ metadata say; the resolution of other TIFFs is that of a printer.

    OME-XML: https://docs.openmicroscopy.org/ome-model, Pixels. ImageJ: resolution tags in pixels
    per ``unit``, and ``spacing`` between slices.
    """
    if file.ome_metadata:
        import tifffile

        image = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, (list, tuple)) else image)["Pixels"]
        return {
            a: float(pixels[f"PhysicalSize{a}"]) * _micrometres(pixels.get(f"PhysicalSize{a}Unit"))
            for a in "XYZ"
            if f"PhysicalSize{a}" in pixels
        }
    if not file.imagej_metadata or "unit" not in file.imagej_metadata:
        return {}
    unit = _micrometres(str(file.imagej_metadata["unit"]))
    tags = file.pages[0].tags
    spacing = {"Z": float(file.imagej_metadata.get("spacing", math.nan)) * unit}
    for axis in "XY":
        pixels, length = tags[f"{axis}Resolution"].value
        spacing[axis] = length / pixels * unit if pixels else math.nan
    return spacing


def _micrometres(unit: str | None) -> float:
    """Return the length of ``unit``, micrometres if none is given; NaN for an unknown one."""
    return 1.0 if unit is None else MICROMETRES.get(unit.strip().lower(), math.nan)


def _read_hdf5(path: Path, key: str | None) -> _Source:
    import h5py

    file = h5py.File(path, "r")
    try:
        if key is None and VolumeFile(path).complete:
            file.close()
            return _read_simulated(path)
        arrays: dict[str, Any] = {}
        file.visititems(
            lambda name, item: arrays.update(
                {name: item} if isinstance(item, h5py.Dataset) and item.ndim > 1 else {}
            )
        )
        array = _named(path, arrays, key)
        axes = _hdf5_axes(array)
        sizes = np.ravel(array.attrs.get("element_size_um", ()))
    except BaseException:
        file.close()
        raise
    spatial = "".join(a for a in axes or "ZYX" if a in "XYZ")[-array.ndim :]
    spacing = dict(zip(spatial, sizes, strict=True)) if len(sizes) == len(spatial) else {}
    return _Source(array, axes, spacing, close=file.close)


def _hdf5_axes(array: Any) -> str | None:
    """Return the axes that Fiji's, ilastik's or this project's attributes name; None if none do."""
    if "axes" in array.attrs:
        return str(array.attrs["axes"]).upper()
    if "axistags" in array.attrs:  # vigra, ilastik
        return "".join(a["key"] for a in json.loads(array.attrs["axistags"])["axes"]).upper()
    labels = "".join(dimension.label for dimension in array.dims).upper()
    return labels if len(labels) == array.ndim else None


def _read_simulated(path: Path) -> _Source:
    """Return the images of a file of simulated volumes; edges of its cube have no micrometres."""
    file = VolumeFile(path)

    class Images:
        shape = (len(file), *file.shape)
        dtype = np.dtype(np.float32)

        def __getitem__(self, where: tuple[Any, ...]) -> np.ndarray:
            return file.read_image(where[0], where[1:])

    return _Source(Images(), "NXYZ", close=file.close)


def _named(path: Path, arrays: Mapping[str, Any], key: str | None) -> Any:
    """Return the array called ``key``, or the only one."""
    shown = ", ".join(f"{name} {array.shape}" for name, array in list(arrays.items())[:8])
    if key is not None:
        if key.strip("/") not in arrays:
            raise StackError(f"{path}: --key {key!r}: not there; it holds {shown or 'no arrays'}")
        return arrays[key.strip("/")]
    if len(arrays) != 1:
        advice = f"several arrays; name one with --key: {shown}" if arrays else "no arrays"
        raise StackError(f"{path}: holds {advice}")
    return next(iter(arrays.values()))


def _read_nrrd(path: Path, key: str | None) -> _Source:
    import nrrd

    array, header = nrrd.read(str(path), index_order="F")
    count = array.ndim
    directions = header.get("space directions")
    sizes = np.full(count, math.nan)
    if directions is not None:
        vectors = [np.full(1, math.nan) if v is None else np.ravel(v) for v in directions]
        sizes = np.array([float(np.linalg.norm(vector)) for vector in vectors])
    elif "spacings" in header:
        sizes = np.asarray(header["spacings"], np.float64)
    kinds = list(header.get("kinds", []))
    spatial_kinds = ("domain", "space")
    if kinds:
        spatial = [k for k in range(count) if kinds[k] in spatial_kinds]
    else:
        spatial = [k for k in range(count) if np.isfinite(sizes[k])] or list(range(min(count, 3)))
    letters = ["C"] * count
    for letter, axis in zip("XYZ", spatial, strict=False):
        letters[axis] = letter
    units = header.get("space units") or header.get("units") or ["um"] * 3
    spacing = {
        letters[axis]: sizes[axis] * _micrometres(str(units[min(k, len(units) - 1)]))
        for k, axis in enumerate(spatial)
    }
    names = ("space", "space dimension", "space directions", "space origin", "space units")
    placement = {f"nrrd {name}": header[name] for name in names if name in header}
    if directions is not None:
        placement["nrrd space directions"] = np.array([directions[k] for k in spatial], float)
    return _Source(array, "".join(letters), spacing, in_memory=True, placement=placement)


def _read_nifti(path: Path, key: str | None) -> _Source:
    import nibabel

    image = nibabel.Nifti1Image.from_filename(path)
    packed = path.name.lower().endswith(".gz")
    array = np.asanyarray(image.dataobj) if packed else image.dataobj
    count = len(image.shape)
    if count > 5:
        raise StackError(f"{path}: has {count} axes; at most x, y, z, time and channel are read")
    unit = {"meter": 1e6, "mm": 1e3, "micron": 1.0}.get(image.header.get_xyzt_units()[0], math.nan)
    sizes = zip("XYZ", image.header.get_zooms(), strict=False)
    spacing = {axis: float(size) * unit for axis, size in sizes}
    dtype = np.dtype(image.get_data_dtype())
    if not packed:
        scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
        array = _Typed(array, np.dtype(np.float64) if scaled and dtype.kind in "uif" else dtype)
    placement = {"nifti affine": image.affine, "nifti unit": image.header.get_xyzt_units()[0]}
    return _Source(array, "XYZTC"[:count], spacing, in_memory=packed, placement=placement)


@dataclass(frozen=True)
class _Typed:
    """A lazy array together with the dtype that its slices have."""

    array: Any
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __getitem__(self, where: tuple[Any, ...]) -> np.ndarray:
        return self.array[where]


def _read_zarr(path: Path, key: str | None) -> _Source:
    import zarr

    opened = zarr.open(str(path), mode="r")
    if isinstance(opened, zarr.Array):
        return _zarr_source(path, opened, {})
    arrays = {name: item for name, item in opened.members(None) if isinstance(item, zarr.Array)}
    attributes = dict(opened.attrs)
    multiscales = dict(attributes.get("ome", attributes)).get("multiscales")
    if not multiscales:
        return _zarr_source(path, _named(path, arrays, key), {})
    wanted = key or multiscales[0]["datasets"][0]["path"]
    return _zarr_source(path, _named(path, arrays, wanted), multiscales[0])


def _zarr_source(path: Path, array: Any, multiscale: Mapping[str, Any]) -> _Source:
    """Take axes and spacing from OME-NGFF metadata (https://ngff.openmicroscopy.org), if any."""
    if "pickle" in json.dumps(array.metadata.to_dict(), default=str).lower():
        raise StackError(f"{path}: is stored as pickled objects, which are never loaded")
    axes, spacing = array.attrs.get("axes"), {}
    if multiscale:
        entries = [a if isinstance(a, dict) else {"name": a} for a in multiscale["axes"]]
        axes = "".join(str(entry["name"]) for entry in entries)
        own = [d for d in multiscale["datasets"] if d["path"].strip("/") == array.path.strip("/")]
        steps = own[0].get("coordinateTransformations", []) if own else []
        scales = [step["scale"] for step in steps if step.get("type") == "scale"]
        if scales:
            spacing = {
                str(entry["name"]).upper(): float(size) * _micrometres(entry.get("unit", ""))
                for entry, size in zip(entries, scales[0], strict=True)
            }
    return _Source(array, str(axes).upper() if axes else None, spacing)


def _read_numpy(path: Path, key: str | None) -> _Source:
    return _Source(_Reopened(lambda: np.load(path, mmap_mode="r", allow_pickle=False)), None)


_READERS: dict[str, Callable[[Path, str | None], _Source]] = {
    "tiff": _read_tiff,
    "hdf5": _read_hdf5,
    "nrrd": _read_nrrd,
    "nifti": _read_nifti,
    "zarr": _read_zarr,
    "numpy": _read_numpy,
}


# --- Writing --------------------------------------------------------------------------------------


def check_output(path: str | Path, *, overwrite: bool = False) -> None:
    """Raise StackError unless ``path`` has a known ending and may be written; writes nothing."""
    path = Path(path)
    format_of(path)
    if path.exists() and not overwrite:
        raise StackError(f"{path}: exists already; --overwrite replaces it")
    if path.is_dir() and not path.name.lower().endswith(".zarr"):
        raise StackError(f"{path}: is a folder")
    if not path.parent.is_dir():
        raise StackError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise StackError(f"{path}: the folder {path.parent} cannot be written")


def write_stack(path: str | Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    """Write a stack in the format of its ending; what stood under ``path`` is replaced.

    TIFF is ImageJ's (OME for ``.ome.tif``), Zarr is OME-Zarr 0.4. Axes and spacing are stored where
    the format can: NumPy keeps the order of axes and no spacing.

    Args:
        path: the file; its folder exists.
        slabs: (X, Y, n) of any n, in order, together ``layout.shape``.
        layout: shape, dtype and spacing.

    Raises:
        StackError: for an unknown ending or a disk that cannot be written; nothing is left then.
    """
    path = Path(path)
    write = _WRITERS[format_of(path)]
    temporary = path.with_name(f".partial.{path.name}")
    try:
        _remove(temporary)
        write(temporary, slabs, layout)
        _move(temporary, path)
    except OSError as error:
        raise StackError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(temporary)


def _move(temporary: Path, path: Path) -> None:
    """Rename a file or folder over ``path``; a folder in the way steps aside until then."""
    if path.is_dir():
        aside = path.with_name(f".replaced.{path.name}")
        _remove(aside)
        os.replace(path, aside)
        os.replace(temporary, path)
        _remove(aside)
    else:
        os.replace(temporary, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _planes(slabs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield each z of the slabs as a contiguous (Y, X) page."""
    for slab in slabs:
        for z in range(slab.shape[-1]):
            yield np.ascontiguousarray(slab[..., z].T)


def _placed(slabs: Iterable[np.ndarray]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield each slab with where it begins and ends."""
    start = 0
    for slab in slabs:
        yield start, start + slab.shape[-1], slab
        start += slab.shape[-1]


def _fill(array: Any, axes: str, slabs: Iterable[np.ndarray]) -> None:
    """Put the slabs into an array (of a file) whose axes stand in the order ``axes``."""
    letters = "XYZ"[: len(axes)]
    order = [letters.index(a) for a in axes]
    for start, stop, slab in _placed(slabs):
        where = [slice(None)] * len(axes)
        where[axes.index(letters[-1])] = slice(start, stop)
        array[tuple(where)] = slab.transpose(order)


def _write_tiff(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    import tifffile

    flat = len(layout.shape) == 2
    ome = ".ome.tif" in path.name.lower()
    metadata: dict[str, Any] = {"axes": "YX" if flat else "ZYX"}
    resolution = None
    if layout.spacing:
        resolution = (1 / layout.spacing[0], 1 / layout.spacing[1])
        if ome:
            for axis, size in zip("XYZ", layout.spacing, strict=False):
                metadata.update({f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "µm"})
        else:
            metadata.update(unit="um", **({} if flat else {"spacing": layout.spacing[2]}))
    pages = (np.concatenate(list(slabs), axis=-1).T,) if flat else _planes(slabs)
    tifffile.imwrite(
        path,
        pages[0] if isinstance(pages, tuple) else pages,
        shape=layout.shape[::-1],
        dtype=layout.dtype,
        imagej=not ome,
        ome=ome,
        bigtiff=ome and layout.nbytes > 2**31,
        photometric="minisblack",
        resolution=resolution,
        resolutionunit=tifffile.RESUNIT.NONE,
        metadata=metadata,
    )


def _write_hdf5(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    import h5py

    axes = layout.axes
    letters = "XYZ"[: len(axes)]
    shape = tuple(layout.shape[letters.index(a)] for a in axes)
    with h5py.File(path, "w") as file:
        array = file.create_dataset(
            "data", shape, layout.dtype, chunks=tuple(min(64, n) for n in shape), compression=1
        )
        array.attrs["axes"] = axes
        if layout.spacing:
            array.attrs["element_size_um"] = [layout.spacing[letters.index(a)] for a in axes]
        _fill(array, axes, slabs)


def _write_nrrd(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    import nrrd

    header: dict[str, Any] = {"kinds": ["domain"] * len(layout.shape), "encoding": "gzip"}
    known = {k.removeprefix("nrrd "): v for k, v in layout.placement.items() if "nrrd " in k}
    if "space directions" in known:
        header.update(known, kinds=["space"] * len(layout.shape))
    elif layout.spacing:
        header.update({"spacings": list(layout.spacing), "units": ["um"] * len(layout.shape)})
    voxels = np.concatenate(list(slabs), axis=-1)
    nrrd.write(str(path), voxels, header, index_order="F", compression_level=1)


def _write_nifti(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    import nibabel

    affine = layout.placement.get("nifti affine")
    unit = layout.placement.get("nifti unit", "unknown")
    if affine is None:
        sizes = (*(layout.spacing or ()), 1.0, 1.0, 1.0)[:3]
        affine, unit = np.diag([*sizes, 1.0]), "micron" if layout.spacing else "unknown"
    image = nibabel.Nifti1Image(np.concatenate(list(slabs), axis=-1), affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)


def _write_zarr(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    import zarr

    axes = "YX" if len(layout.shape) == 2 else "ZYX"
    spacing = (layout.spacing or (1.0,) * len(axes))[::-1]
    unit = {"unit": "micrometer"} if layout.spacing else {}
    scale = {"type": "scale", "scale": [float(size) for size in spacing]}
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "name": "data",
            "axes": [{"name": a.lower(), "type": "space", **unit} for a in axes],
            "datasets": [{"path": "0", "coordinateTransformations": [scale]}],
        }
    ]
    array = group.create_array(
        "0",
        shape=layout.shape[::-1],
        dtype=layout.dtype,
        chunks=tuple(min(64, n) for n in layout.shape[::-1]),
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    _fill(array, axes, slabs)


def _write_numpy(path: Path, slabs: Iterable[np.ndarray], layout: StackLayout) -> None:
    letters = "XYZ"[: len(layout.axes)]
    shape = tuple(layout.shape[letters.index(a)] for a in layout.axes)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=layout.dtype, shape=shape)
    _fill(array, layout.axes, slabs)
    array.flush()


_WRITERS: dict[str, Callable[[Path, Iterable[np.ndarray], StackLayout], None]] = {
    "tiff": _write_tiff,
    "hdf5": _write_hdf5,
    "nrrd": _write_nrrd,
    "nifti": _write_nifti,
    "zarr": _write_zarr,
    "numpy": _write_numpy,
}
