"""What all formats share: an array in a file, a stack of it, and tools to read and write both.

Stacks are (X, Y, Z), or (X, Y) for images, whatever order a file keeps them in, and spacings are
micrometres along those axes. A slab is a range of the last axis.
"""

from __future__ import annotations

import errno
import itertools
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.stacks.place import Place

UNSUPPORTED = re.compile(
    "not supported|unsupported|not implemented|codec|required filter|/plugin|requires the", re.I
)
"""What the libraries say of files that are sound, but stored in a way that is not read here."""
CHUNK_PLANES, CHUNK_EDGE = 16, 128  # of outputs' chunks: few planes, so that few are held


@dataclass(frozen=True)
class StackLayout:
    """All that an output is made from beside its voxels."""

    shape: tuple[int, ...]  # voxels along x, y, z (or x, y)
    dtype: np.dtype
    spacing: tuple[float, ...] | None = None  # edge of a voxel in micrometres; None if nobody knows
    axes: str = "ZYX"  # slowest first, of a format that has no order of its own (HDF5, NumPy)
    place: Place | None = field(default=None, repr=False)  # None: at 0 along the axes of space

    @staticmethod
    def like(stack: Stack, dtype: Any) -> StackLayout:
        """Return the layout of a result with the voxels of ``stack``."""
        return StackLayout(stack.shape, np.dtype(dtype), stack.spacing, stack.axes, stack.place)

    @property
    def placed(self) -> Place:
        """The place, made of the spacing where there is none."""
        sizes = dict(zip("XYZ", self.spacing or (), strict=False))
        return self.place or Place.aligned(sizes).within(len(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize

    def stored(self, axes: str) -> dict[str, Any]:
        """Return shape, dtype and chunks, flat along z, of an array with this order of axes."""
        shape = tuple(self.shape["XYZ".index(a)] for a in axes)
        edges = [CHUNK_PLANES if a == "Z" else CHUNK_EDGE for a in axes]
        return {"shape": shape, "dtype": self.dtype, "chunks": tuple(map(min, edges, shape))}


@dataclass(frozen=True, kw_only=True)
class Stack(StackLayout, AbstractContextManager):
    """One stack or image, opened by :func:`open_stack`; ``dtype`` is what :meth:`read` returns."""

    path: Path
    channel: int | None  # which of the file's channels this is, from 0; None if it has none
    loaded: int  # bytes that stay in memory from the first reading on
    voxel_bytes: int  # what a voxel takes while it is read: in the file's pages, copied, converted
    layer: int  # planes in a layer of chunks (TIFF: of strips), unpacked whole for any of them
    unpacked: int  # bytes that chunks, packed and not, take meanwhile; 0 if any part is read alone
    origin: tuple[int, ...]  # the first voxel's place in the file along each axis: not 0 in a box
    warning: Callable[[], str | None] = field(repr=False)
    """Looks whether the file can be read but may not be whole; says so in one line."""
    part: Callable[[tuple[slice, ...]], np.ndarray] = field(repr=False)
    """Reads a box (x, y, z) in the file's dtype; :meth:`read` is for everyone else."""
    close: Callable[[], None] = field(default=lambda: None, repr=False)
    kept: dict[int, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The layer of chunks that was read last, by its first plane."""

    @property
    def edges(self) -> tuple[float, ...]:
        """Edges of a voxel by their ratio: the spacing, else by the finest edge; 1 if unknown."""
        return self.spacing or tuple(n / min(self.place.sizes) for n in self.place.sizes)

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the slab ``start <= z < stop`` (y of an image) as (X, Y, stop - start).

        Of planes whose chunks are unpacked whole the last layer is kept for the next slab. Raises
        UserError where the file is cut or damaged.
        """
        stop = self.shape[-1] if stop is None else stop
        if self.layer == 1:
            return self._planes(start, stop)
        slab = np.empty((*self.shape[:-1], stop - start), self.dtype, order="F")
        before = self.origin[-1] % self.layer  # planes of the first layer that a crop left out
        for place in range((start + before) // self.layer * self.layer - before, stop, self.layer):
            first, end = max(place, 0), min(place + self.layer, self.shape[-1])
            if first not in self.kept:
                self.kept.clear()
                self.kept[first] = self._planes(first, end)
            a, b = max(start, first), min(stop, end)
            slab[..., a - start : b - start] = self.kept[first][..., a - first : b - first]
        return slab

    def _planes(self, start: int, stop: int) -> np.ndarray:
        box = (*(slice(0, n) for n in self.shape[:-1]), slice(start, stop))
        return self.part(box).astype(self.dtype, copy=False)

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(frozen=True)
class FileArray:
    """An array, series or image in a file, with all its axes, of which parts are read."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype  # as it is stored
    read: Callable[[tuple[int | slice, ...]], Any] = field(repr=False)
    """The library's reading; :meth:`part` is for everyone else."""
    axes: str | None = None  # a letter an axis, see :mod:`axes`; None if unknown
    place: Place = field(default_factory=lambda: Place.aligned({}))
    """Sizes and place of its voxels, as far as the file tells them."""
    chunks: tuple[int, ...] | None = None  # edges of what is unpacked whole; None if nothing is
    at_once: int = 1  # chunks that are unpacked at a time
    loaded: int = 0  # bytes that the first access loads and keeps, if it is read as a whole
    notes: tuple[str, ...] = ()  # what a person should know of how it is read
    warning: Callable[[], str | None] = field(default=lambda: None, repr=False)  # of a stack
    key: str = ""  # in a list what names it (``--key``, ``--series``); empty if it is alone
    chosen: bool = False  # whether it is read if nothing is named

    def noted(self, note: str | None) -> FileArray:
        """Return it with more that a person should know, if that is anything."""
        return replace(self, notes=(*self.notes, note)) if note else self

    @classmethod
    def found(cls, path: Path, load: Callable[[], Any], **told: Any) -> FileArray:
        """Return what ``load`` finds, each time anew, so that a mapping is let go; or UserError."""
        with library_errors(path):
            array = load()
            shape, dtype = tuple(map(int, array.shape)), np.dtype(array.dtype)
            return cls(path, shape, dtype, lambda where: load()[where], **told)

    def part(self, where: tuple[int | slice, ...]) -> np.ndarray:
        """Return the part at a place, or in a slice, along each axis; UserError if it is lost."""
        places = [range(n)[place] for place, n in zip(where, self.shape, strict=True)]
        with library_errors(self.path):
            found = self.read(where)
            found = np.array(found) if isinstance(found, np.memmap) else np.asarray(found)
        if found.shape != tuple(len(place) for place in places if isinstance(place, range)):
            raise UserError(f"{self.path}: holds fewer voxels than its header says; it is cut")
        return found


@dataclass(frozen=True)
class Contents:
    """What an open file holds, by the names that ``--key`` (or ``flag``) takes."""

    path: Path
    arrays: Mapping[str, Any]  # all that may be named: arrays, or what else has a ``shape``
    open: Callable[[str], FileArray]  # returns one of them by its name
    listed: Sequence[str] = ("",)  # names that ``--list`` shows
    unasked: Sequence[str] = ("",)  # what may be meant where nothing is named
    group: Callable[[str], Sequence[str]] = lambda name: ()  # what a name of no array may mean
    close: Callable[[], None] = lambda: None
    flag: str = "--key"
    note: str = ""  # what to know where nothing is named, or what is named is not found

    def source(self, key: str | None) -> FileArray:
        """Return what is called ``key``, or the only one; UserError where that is none or many."""
        name = (key or "").strip("/")
        found = self.unasked
        if name:
            found = [name] if name in self.arrays else self.group(name)
        if name and not found:
            held = self._shown([name for name in self.arrays if name] or [*self.arrays])
            raise UserError(f"{self.path}: {self.flag} {key!r}: not there; it holds {held}")
        if len(found) != 1:
            several = f"several arrays; name one with {self.flag}: "
            raise UserError(f"{self.path}: holds {several if found else ''}{self._shown(found)}")
        return self.open(found[0]).noted(None if key else self.note)

    def _shown(self, names: Sequence[str]) -> str:
        shown = ", ".join(f"{name} {self.arrays[name].shape}".strip() for name in names[:8])
        return "; ".join(filter(None, [shown or "no arrays", self.note]))

    def entries(self) -> list[FileArray]:
        """Return what ``--list`` shows; UserError where that is nothing."""
        if not self.listed:
            self.source(None)
        one = self.unasked[0] if len(self.unasked) == 1 else None
        found = ((name, self.open(name)) for name in self.listed)
        return [replace(a.noted(a.place.note()), key=n, chosen=n == one) for n, a in found]


@contextmanager
def library_errors(path: Path) -> Iterator[list[str]]:
    """Turn what a format's library raises about a file into one UserError that says what is wrong.

    The libraries parse any bytes, raise nearly every exception, and warn on the way. For their
    calls, and lines that take a file apart, alone: a bug of ours would be called a damaged file.
    Yields the list of what tifffile logs as errors.
    """
    try:
        with warnings.catch_warnings(), quiet("nibabel.global"), quiet("tifffile") as messages:
            warnings.simplefilter("ignore")
            yield messages
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        said = "damaged, cut or not of its ending's format"
        if isinstance(error, MemoryError):
            said = "not enough memory to read it"
        elif getattr(error, "errno", None) not in (None, errno.EINVAL) or "already open" in reason:
            said = "cannot be read"  # the system's words; EINVAL is of places that make no sense
        elif isinstance(error, ImportError | NotImplementedError) or UNSUPPORTED.search(reason):
            said = "stored in a way that cannot be read here"
        raise UserError(f"{path}: {said} ({reason})") from error


@contextmanager
def quiet(name: str) -> Iterator[list[str]]:
    """Keep what a logger says from the user; yield the list to which its errors are added."""
    messages: list[str] = []

    def drop(record: logging.LogRecord) -> bool:
        messages.extend([record.getMessage()] * (record.levelno >= logging.ERROR))
        return False

    logging.getLogger(name).addFilter(drop)
    try:
        yield messages
    finally:
        logging.getLogger(name).removeFilter(drop)


def planes_of(slabs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield each z of the slabs as a contiguous (Y, X) page; of an image each y as (X,)."""
    for slab in slabs:
        for z in range(slab.shape[-1]):
            yield np.ascontiguousarray(slab[..., z].T)


def fill(array: Any, axes: str, slabs: Iterable[np.ndarray]) -> Any:
    """Put the slabs into an array of this order of axes, no chunk of it twice; return the array."""
    letters = "ZYX"[-len(axes) :]
    along = axes.index(letters[0])
    depth = array.chunks[along] if hasattr(array, "chunks") else CHUNK_PLANES
    pages, start = planes_of(slabs), 0
    while batch := list(itertools.islice(pages, depth)):
        where = (*[slice(None)] * along, slice(start, start + len(batch)))
        array[where] = np.stack(batch).transpose([letters.index(a) for a in axes])
        start += len(batch)
    return array


def whole_of(slabs: Iterable[np.ndarray], layout: StackLayout) -> np.ndarray:
    """Return the slabs as one array, x fastest, for formats that are written as a whole."""
    whole = np.empty(layout.shape, layout.dtype, order="F")
    return fill(whole, "XYZ"[: whole.ndim], slabs)
