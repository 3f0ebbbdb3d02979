"""What all formats share: a stack, its layout, and tools that their readers and writers use.

Arrays are (X, Y, Z), or (X, Y) for images, whatever order a file keeps them in, and spacings are
micrometres along those axes. A slab is a range of the last axis.
"""

from __future__ import annotations

import errno
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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
OF_THE_SYSTEM = (
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN),
)
"""What the system says of files and disks, not of bytes that make no sense."""
CHUNK_PLANES, CHUNK_EDGE = 16, 128
"""Chunks of outputs, along z and along the other axes: few planes, so that few are held at a time.
"""


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
    loaded: int
    """Bytes that stay in memory from the first reading on; 0 for what is read by slabs."""
    voxel_bytes: int
    """What a voxel of a slab takes while it is read: in the file's pages, copied, converted."""
    layer: int
    """Planes in a layer of chunks (TIFF: of strips) that are unpacked whole: all of them for one.
    """
    unpacked: int
    """Bytes that chunks take while they are unpacked, packed ones and what becomes of them; 0 where
    any part is read alone."""
    place: Place = field(repr=False)
    """Where its voxels stand, and their size in the file's own unit."""
    origin: tuple[int, ...]
    """The first voxel's place among the file's, from 0 along each axis: not 0 in a box cut out."""
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

    @property
    def nbytes(self) -> int:
        """Bytes of the whole stack in ``dtype``."""
        return math.prod(self.shape) * self.dtype.itemsize

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
            begin, behind = max(first, start), min(end, stop)
            slab[..., begin - start : behind - start] = self.kept[first][
                ..., begin - first : behind - first
            ]
        return slab

    def _planes(self, start: int, stop: int) -> np.ndarray:
        box = (*map(slice, (0,) * (len(self.shape) - 1), self.shape[:-1]), slice(start, stop))
        return self.part(box).astype(self.dtype, copy=False)

    def __enter__(self) -> Stack:
        """Return itself; leaving the block closes the file."""
        return self

    def __exit__(self, *error: object) -> None:
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
    place: Place | None = field(default=None, repr=False)
    """None for a stack at 0 along the axes of space."""

    @classmethod
    def like(cls, stack: Stack, dtype: Any) -> StackLayout:
        """Return the layout of a result with the voxels of ``stack``."""
        return cls(stack.shape, np.dtype(dtype), stack.spacing, stack.axes, stack.place)

    @property
    def placed(self) -> Place:
        """The place, made of the spacing where there is none."""
        sizes = dict(zip("XYZ", self.spacing or (), strict=False))
        return self.place or Place.aligned(sizes).within(len(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all voxels."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class FileArray:
    """An array in a file of which parts are read."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], Any] = field(repr=False)
    """Returns the library's array; one that is mapped is mapped anew, so that it is let go."""

    @classmethod
    def found(cls, path: Path, load: Callable[[], Any]) -> FileArray:
        """Return the array that ``load`` finds in the file; UserError if it finds none."""
        with library_errors(path):
            array = load()
            return cls(path, tuple(int(n) for n in array.shape), np.dtype(array.dtype), load)

    def part(self, where: tuple[int | slice, ...]) -> np.ndarray:
        """Return the part at a place, or in a slice, along each axis; UserError if it is lost."""
        places = [range(n)[place] for place, n in zip(where, self.shape, strict=True)]
        with library_errors(self.path):
            found = self.load()[where]
            found = np.array(found) if isinstance(found, np.memmap) else np.asarray(found)
        if found.shape != tuple(len(place) for place in places if isinstance(place, range)):
            raise UserError(f"{self.path}: holds fewer voxels than its header says; it is cut")
        return found


@dataclass(frozen=True)
class MadeArray:
    """An array whose parts are made of those of others."""

    shape: tuple[int, ...]
    dtype: np.dtype
    part: Callable[[tuple[Any, ...]], np.ndarray] = field(repr=False)
    """Does as :meth:`FileArray.part`."""


@dataclass(frozen=True)
class Source:
    """An array in a file with what its format says of it, before a channel is chosen."""

    array: FileArray | MadeArray
    axes: str | None
    """A letter an axis: X, Y, Z, C or S (channels), T (time), N (sample); None if unknown."""
    place: Place = field(default_factory=lambda: Place.aligned({}))
    """Sizes and place of its voxels, as far as the file tells them."""
    loaded: int = 0
    """Bytes that the first access loads and keeps, where the format is read as a whole."""
    notes: tuple[str, ...] = ()
    """What a person should know of how the file is read."""
    warning: Callable[[], str | None] = lambda: None
    at_once: int = 1
    """Chunks that are unpacked at a time."""
    chunks: tuple[int, ...] | None = None
    """Edges, one an axis, of what is unpacked whole whichever part of it is wanted; None for an
    array of which any part is read alone."""


@dataclass(frozen=True)
class Entry:
    """What one array, series or image in a file is; from :func:`list_stacks`."""

    key: str
    """What names it (``--key``, ``--series``); empty where the file has nothing else."""
    shape: tuple[int, ...]
    """Lengths of all axes in the file's order, channels (C, S) and time points (T, N) too."""
    axes: str | None
    """A letter an axis as in :class:`Source`; None if unknown."""
    dtype: np.dtype
    """As it is stored."""
    spacing: Mapping[str, float]
    """Micrometres by axis letter, as far as the file tells."""
    chosen: bool
    """Whether it is read if nothing is named."""
    notes: tuple[str, ...] = ()
    """What a person should know of how it is read."""


@dataclass(frozen=True)
class Contents:
    """What an open file holds, by the names that ``--key`` (or ``flag``) takes."""

    path: Path
    listed: Mapping[str, Any]
    """What ``--list`` shows, arrays or what else has a ``shape``."""
    within: Callable[[str], Mapping[str, Any]]
    """Returns what a name may mean, several of a group; an empty one, what is read unasked."""
    open: Callable[[str], Source]
    """Returns one of them by its name."""
    close: Callable[[], None] = lambda: None
    flag: str = "--key"
    unasked: str = ""
    """What a person should know where nothing was named."""
    named: Mapping[str, Any] = field(default_factory=dict)
    """All that may be named, said to who names what is not there; what is listed if empty."""
    lost: str = ""
    """Added to what is said where an array is not found."""

    def source(self, key: str | None) -> Source:
        """Return what is called ``key``, or the only one; UserError where that is none or many."""
        found = self.within((key or "").strip("/"))
        if key is not None and not found:
            shown = _shown(self.named or self.listed) or "no arrays"
            raise UserError(
                f"{self.path}: {self.flag} {key!r}: not there; it holds {shown}{self.lost}"
            )
        if len(found) != 1:
            advice = f"several arrays; name one with {self.flag}: {_shown(found)}"
            raise UserError(f"{self.path}: holds {advice if found else 'no arrays'}{self.lost}")
        source = self.open(next(iter(found)))
        notes = (self.unasked,) if key is None and self.unasked else ()
        return replace(source, notes=(*source.notes, *notes))

    def entries(self) -> list[Entry]:
        """Return what ``--list`` shows; UserError where that is nothing."""
        unasked = [*self.within("").values()]
        if not self.listed:
            self.source(None)
        found = []
        for name, listed in self.listed.items():
            source, chosen = self.open(name), len(unasked) == 1 and unasked[0] is listed
            sizes = source.place.known if math.isfinite(source.place.unit) else {}
            array = source.array
            notes = (*source.notes, *filter(None, [source.place.note()]))
            found.append(Entry(name, array.shape, source.axes, array.dtype, sizes, chosen, notes))
        return found


def _shown(arrays: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {array.shape}".strip() for name, array in [*arrays.items()][:8])


@contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Turn what a format's library raises about a file into one UserError that says what is wrong.

    The libraries parse what may be any bytes, and raise nearly every kind of exception on the way;
    what they would warn of or log is said by that error or harmless. For their calls, and for lines
    that take what the file says apart, alone: a bug of ours would be called a damaged file.
    """
    try:
        with warnings.catch_warnings(), quiet("nibabel.global"), quiet("tifffile"):
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if isinstance(error, MemoryError):
            said = f"not enough memory to read it ({reason})"
        elif isinstance(error, OSError) and (
            error.errno in OF_THE_SYSTEM or "already open" in reason
        ):
            said = f"cannot be read ({reason})"
        elif isinstance(error, ImportError | NotImplementedError) or UNSUPPORTED.search(reason):
            said = f"stored in a way that cannot be read here ({reason})"
        else:
            said = f"damaged, cut or not of its ending's format ({reason})"
        raise UserError(f"{path}: {said}") from error


@contextmanager
def quiet(name: str) -> Iterator[list[str]]:
    """Keep what a logger says from the user; yield the list to which its errors are added."""
    messages: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger(name)
    before = logger.propagate, logger.handlers
    logger.propagate, logger.handlers = False, [handler]
    try:
        yield messages
    finally:
        logger.propagate, logger.handlers = before


@contextmanager
def closed_if_it_fails(file: Any) -> Iterator[None]:
    """Close ``file`` where the block raises."""
    try:
        yield
    except BaseException:
        file.close()
        raise


def planes_of(slabs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield each z of the slabs as a contiguous (Y, X) page."""
    for slab in slabs:
        for z in range(slab.shape[-1]):
            yield np.ascontiguousarray(slab[..., z].T)


def gathered(slabs: Iterable[np.ndarray], planes: int) -> Iterator[np.ndarray]:
    """Yield the slabs cut anew, ``planes`` deep but for the last: whole chunks of a file."""
    held: list[np.ndarray] = []
    for slab in slabs:
        start = 0
        while start < slab.shape[-1]:
            stop = start + planes - sum(part.shape[-1] for part in held)
            held.append(slab[..., start:stop])
            start = stop
            if sum(part.shape[-1] for part in held) == planes:
                yield np.concatenate(held, axis=-1)
                held = []
    if held:
        yield np.concatenate(held, axis=-1)


def whole_of(slabs: Iterable[np.ndarray], layout: StackLayout) -> np.ndarray:
    """Return the slabs as one array, x fastest, for formats that are written as a whole."""
    whole = np.empty(layout.shape, layout.dtype, order="F")
    fill(whole, "XYZ"[: whole.ndim], slabs)
    return whole


def chunks_of(shape: tuple[int, ...], axes: str) -> tuple[int, ...]:
    """Return the chunks of an array whose axes stand in the order ``axes``: flat along z."""
    edges = {"Z": CHUNK_PLANES}
    return tuple(min(edges.get(a, CHUNK_EDGE), n) for n, a in zip(shape, axes, strict=True))


def fill(array: Any, axes: str, slabs: Iterable[np.ndarray]) -> None:
    """Put the slabs into an array (of a file) whose axes stand in the order ``axes``."""
    letters = "XYZ"[: len(axes)]
    order = [letters.index(a) for a in axes]
    start = 0
    for slab in slabs:
        where = [slice(None)] * len(axes)
        where[axes.index(letters[-1])] = slice(start, start + slab.shape[-1])
        array[tuple(where)] = slab.transpose(order)
        start += slab.shape[-1]


def fill_chunks(array: Any, axes: str, slabs: Iterable[np.ndarray]) -> None:
    """Do as :func:`fill` with an array in chunks, so that none is written twice."""
    last = axes.index("XYZ"[len(axes) - 1])
    fill(array, axes, gathered(slabs, array.chunks[last]))
