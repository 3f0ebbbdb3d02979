"""Labelled stacks as training data: what somebody has drawn beside a microscope's stacks.

Given is a folder with ``images/`` and ``labels/`` (equal names), one in nnU-Net's layout, or a pair
``IMAGE=LABELS`` or ``IMAGE=LABELS=MASK``, in any format of ``utils.stacks``. Labels are whole
numbers, 0 for background; where they have a value that the user names, or where MASK is 0, nobody
has annotated anything. If that value is 0, as programs for painting have it, 1 is background.
Arrays are (X, Y, Z) or (X, Y).
"""

import functools
import math
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from utils.data.epochs import EpochDataset, in_turn, item_index
from utils.data.normalize import PercentileNormalizer, measure_limits
from utils.data.volumes import Slices, check_patches, patch_slices
from utils.errors import UserError, disk_errors
from utils.resampling import Resampling, planes_at_once
from utils.simulation.streams import Purpose, check_seed, make_rng
from utils.stacks import ENDINGS, Stack, open_stack, split_ending

FOLDERS = {"images": "labels", "imagesTr": "labelsTr", "imagesTs": "labelsTs"}
"""Folders of images, and those beside them with their labels."""
HEADERS = (".nhdr", ".hdr", ".hdr.gz", ".xml")
"""Endings that are read where another file of the same name holds their voxels."""
UNKNOWN = -1  # label of voxels that nobody annotated
TRIES = 20  # patches that are looked at before one is taken that has any labelled voxel
MOST_COUNTED = 1 << 26  # voxels up to which the connected parts of a mask are counted


@dataclass(frozen=True)
class LabelledPair:
    """A stack and its labels, not opened yet."""

    image: Path
    labels: Path
    annotated: Path | None = None  # not 0 where somebody has annotated
    channel: int | None = None  # of the image's file
    name: str = ""  # without ending, of a folder's pairs that of both


def find_pairs(
    given: str | Path, *, channel: int | None = None, parts: Sequence[str] = ("Tr",)
) -> list[LabelledPair]:
    """Return the pairs that ``given`` names, by their names; no file is opened.

    ``given`` is as this file's head says, or a folder of images beside that of its labels. In
    nnU-Net's layout each ``channel`` has a file ``NAME_0000``, and of its ``parts``, ``Tr`` and
    ``Ts``, the first that has labels is taken. Raises UserError where nothing is there, or an image
    or labels stand alone.
    """
    folder = Path(given)
    if not os.path.isdir(folder):  # Path's raises where a pair is longer than a name may be
        files = str(given).split("=")
        if len(files) not in (2, 3) or not all(files):
            raise UserError(f"{given}: give a folder, IMAGE=LABELS or IMAGE=LABELS=MASK")
        image, labels, *masks = map(Path, files)
        name = split_ending(_file_around(image))[0]
        return [LabelledPair(image, labels, masks[0] if masks else None, channel, name)]
    places = [folder] if folder.name in FOLDERS else [folder / f"images{p}" for p in ("", *parts)]
    beside = [(images, images.with_name(FOLDERS[images.name])) for images in places]
    there = [both for both in beside if all(map(os.path.isdir, both))]
    if not there:
        needed = "images/ and labels/, or imagesTr/ and labelsTr/ as for nnU-Net"
        raise UserError(f"{given}: no labelled stacks: it must hold {needed}")
    images, labels = there[0]
    drawn, found = _stacks_in(labels), _stacks_in(images)
    seen = {name: LabelledPair(path, path, None, channel) for name, path in found.items()}
    if images.name != "images":
        seen = _one_channel(seen, channel)
    if not drawn or not seen:
        known = ", ".join(ENDINGS)
        raise UserError(f"{labels if seen else images}: holds no stack; they end in {known}")
    for name in sorted({*drawn} ^ {*seen}):
        lonely, other = (drawn[name], images) if name in drawn else (seen[name].image, labels)
        raise UserError(f"{lonely}: stands alone: {other} holds nothing of the name {name}")
    return [replace(seen[name], labels=drawn[name], name=name) for name in sorted(seen)]


def _stacks_in(folder: Path) -> dict[str, Path]:
    """Return the stacks in a folder by their names without ending; UserError for equal ones."""
    found: dict[str, Path] = {}
    with disk_errors(folder):
        paths = sorted(folder.iterdir())
    for path in paths:
        file = path.name.lower()
        if file.startswith(".") or not (file.endswith(tuple(ENDINGS)) or path.is_dir()):
            continue
        other = found.setdefault(split_ending(path)[0], path)
        if file.endswith(HEADERS):
            found[split_ending(path)[0]] = path
        elif other != path and not other.name.lower().endswith(HEADERS):
            raise UserError(f"{path}: {other.name} has the same name; keep one of them there")
    return found


def _one_channel(images: dict[str, LabelledPair], channel: int | None) -> dict[str, LabelledPair]:
    """Return the images of one channel by the names that nnU-Net's labels have."""
    channels: dict[str, dict[int, LabelledPair]] = {}
    for stem, image in images.items():
        name, number = re.fullmatch(r"(.+?)(?:_(\d{4}))?", stem).groups()
        channels.setdefault(name, {})[int(number or 0)] = image
    chosen = {}
    for name, files in channels.items():
        first = next(iter(files.values()))
        if len(files) > 1 and channel not in files:
            numbers = ", ".join(map(str, sorted(files)))
            raise UserError(f"{first.image}: there are channels {numbers}; name one with --channel")
        chosen[name] = first if len(files) == 1 else replace(files[channel], channel=None)
    return chosen


@dataclass(frozen=True)
class OpenPair:
    """A pair whose files are open; made by :func:`reading_pair`."""

    pair: LabelledPair
    image: Stack
    labels: Stack
    mask: Stack | None
    ignore_label: int | None

    def read_labels(self, start: int, stop: int) -> np.ndarray:
        """Return planes as (X, Y, n) int64, -1 where nobody annotated; UserError for no labels."""
        ids = _whole_numbers(self.labels, start, stop)
        ignored = self.ignore_label
        unknown = np.zeros(ids.shape, bool) if ignored is None else ids == ignored
        if (ids[~unknown] < 0).any():
            advice = "name the value of voxels that nobody annotated with --ignore_label"
            raise UserError(f"{self.labels.path}: holds the label {ids[~unknown].min()}; {advice}")
        if ignored == 0:
            ids -= 1
        if self.mask is not None:
            unknown |= _whole_numbers(self.mask, start, stop) == 0
        ids[unknown] = UNKNOWN
        return ids

    def count(self) -> tuple[int, int, int]:
        """Return how many voxels are annotated and labelled, and ids there are; UserError for 0."""
        annotated = labelled = 0
        known: set[int] = set()
        planes = planes_at_once(8 * math.prod(self.image.shape[:-1]))
        for start in range(0, self.image.shape[-1], planes):
            ids = self.read_labels(start, min(start + planes, self.image.shape[-1]))
            annotated += int(np.count_nonzero(ids != UNKNOWN))
            labelled += int(np.count_nonzero(ids > 0))
            known.update(np.unique(ids).tolist())
        name, background = self.labels.path, int(self.ignore_label == 0)
        if not annotated:
            what = f" but for what {self.pair.annotated} leaves out" if self.mask else ""
            raise UserError(f"{name}: no voxel is annotated{what}; nothing is to be learned of it")
        if not labelled:
            said = f"all that is annotated is {background}, background"
            raise UserError(f"{name}: no voxel is labelled: {said}")
        return annotated, labelled, len(known - {0, UNKNOWN})


def _whole_numbers(stack: Stack, start: int, stop: int) -> np.ndarray:
    """Return ``start <= z < stop`` as int64; UserError for values that are no labels."""
    values = stack.read(start, stop)
    if values.dtype.kind == "f" and not (np.isfinite(values) & (values % 1 == 0)).all():
        raise UserError(f"{stack.path}: holds fractions or NaN; labels are whole numbers")
    return values.astype(np.int64)


@contextmanager
def reading_pair(
    pair: LabelledPair,
    *,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    ignore_label: int | None = None,
) -> Iterator[OpenPair]:
    """Open the files of a pair for the block; ``FILE.h5/KEY`` is an array in an HDF5 file.

    ``axes`` are those of the images' files as for ``open_stack``, of which labels have those in
    space alone; ``voxel_size`` is micrometres along z, y, x, where the images do not tell. Raises
    UserError if a file cannot be read, or labels have another size than their image.
    """
    with ExitStack() as files:
        given = {"axes": axes, "voxel_size": voxel_size, "channel": pair.channel}
        image = files.enter_context(_open(pair.image, **given))
        spatial = axes and "".join(letter for letter in axes.upper() if letter in "XYZ")
        drawn = []
        for path in filter(None, (pair.labels, pair.annotated)):
            stack = files.enter_context(_open(path, axes=spatial))
            if stack.shape != image.shape:
                other = f"(x, y, z), and {pair.image} {image.shape}"
                raise UserError(f"{path}: has shape {stack.shape} {other}")
            dtype = stack.part((slice(0, 1),) * len(stack.shape)).dtype
            drawn.append(replace(stack, dtype=dtype))  # ids above 2^24 are lost in float32
        yield OpenPair(pair, image, drawn[0], drawn[1] if len(drawn) > 1 else None, ignore_label)


def _file_around(path: Path) -> Path:
    """Return the file that ``FILE.h5/KEY`` is an array of, and a file itself as it is."""
    return next((folder for folder in path.parents if folder.is_file()), path)


def _open(path: Path, **given: Any) -> Stack:
    """Open a file, or an array in one."""
    file = _file_around(path)
    key = None if file == path else path.relative_to(file).as_posix()
    try:
        return open_stack(file, key=key, **given)
    except UserError as error:
        foreign = "key|index|series" if "channel" in given else "key|index|series|channel"
        if not re.search(f"name one with --({foreign})", str(error)):  # flags of predict.py
            raise
        advice = "here FILE/KEY names an array, and what else is chosen is a file of its own"
        raise UserError(f"{error}; {advice}") from error


class _Scratch:
    """A temporary folder that goes with the last of those who hold this, in this process."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="labelled_"))
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:  # forked workers have copies of those who hold it
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True, eq=False)
class LabelledStack:
    """A labelled stack as a network sees it, on the disk; made by :func:`open_pair`.

    The copies lie in a temporary folder, from where the system keeps in memory what fits.
    """

    pair: LabelledPair
    scratch: _Scratch = field(repr=False)
    box: Slices  # the part of the copies that this is; all of them, but for :meth:`split`
    normalizer: PercentileNormalizer
    numbered: bool  # whether labels tell columns apart
    columns: int | None  # labels of the whole stack, or of a mask its parts; None: too large
    reasons: tuple[str, ...]  # lines that say why it has this shape

    @property
    def image(self) -> np.ndarray:
        """Float32, 0..1, by the grey values of the whole stack."""
        return np.load(self.scratch.path / "image.npy", mmap_mode="r")[self.box]

    @property
    def target(self) -> np.ndarray:
        """Int8 of that shape: 0, 1, or :data:`UNKNOWN`."""
        return np.load(self.scratch.path / "target.npy", mmap_mode="r")[self.box]

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along x, y, z (or x, y), as the network sees them."""
        return tuple(part.stop - part.start for part in self.box)

    @cached_property
    def annotated(self) -> np.ndarray:
        """Annotated voxels of each plane of the last axis, int64."""
        return _count_planes(self.target)[0]

    @cached_property
    def labelled(self) -> np.ndarray:
        """Labelled voxels of each plane of the last axis, int64."""
        return _count_planes(self.target)[1]

    def split(self, share: float) -> tuple[Self, Self]:
        """Return a part to train on and one to validate on, on two sides of a plane.

        The second holds about ``share`` of the annotated voxels. The cut is across the longest axis
        that leaves both parts labelled voxels. Raises UserError where none does.
        """
        target = self.target
        for axis in sorted(range(target.ndim), key=lambda axis: -target.shape[axis]):
            annotated, labelled = _count_planes(np.moveaxis(target, axis, -1))
            known = np.cumsum(annotated)
            cut = int(np.searchsorted(known, (1 - share) * known[-1])) + 1
            if labelled[:cut].any() and labelled[cut:].any():
                start, stop = self.box[axis].start, self.box[axis].stop
                sides = slice(start, start + cut), slice(start + cut, stop)
                boxes = ((*self.box[:axis], side, *self.box[axis + 1 :]) for side in sides)
                first, second = (replace(self, box=box) for box in boxes)
                return first, second
        held_out = f"to hold a share of {share:g} out for validation"
        raise UserError(f"{self.pair.labels}: too little is labelled {held_out}")

    def describe(self) -> dict[str, Any]:
        """Return what it is as plain JSON, as data sets do."""
        box = [[part.start, part.stop] for part in self.box]
        counts = {"annotated": int(self.annotated.sum()), "labelled": int(self.labelled.sum())}
        return {"file": str(self.pair.image), "box": box, **counts}

    def line(self) -> str:
        """Return a line on how much of it is annotated."""
        told = f"{self.columns} {'columns' if self.numbered else 'connected parts of a mask'}"
        told = "a mask" if self.columns is None else told
        counts = self.annotated.sum(), self.labelled.sum()
        return annotation_line(self.pair, self.shape, *counts, told)


def annotation_line(
    pair: LabelledPair, shape: tuple[int, ...], annotated: int, labelled: int, told: str
) -> str:
    """Return a line on what is annotated and labelled; ``told``: what the labelled ones are in."""
    edges, share = " x ".join(map(str, shape)), annotated / math.prod(shape)
    return (
        f"{pair.image}: {edges} voxels, {annotated:,} annotated ({100 * share:.3g} %), "
        f"{labelled:,} of these in {told}"
    )


def _count_planes(target: np.ndarray) -> np.ndarray:
    """Return the annotated and the labelled voxels of each plane of the last axis, (2, Z) int64."""
    planes = (target[..., z] for z in range(target.shape[-1]))  # one by one: it may be a file
    counts = [(np.count_nonzero(p != UNKNOWN), np.count_nonzero(p == 1)) for p in planes]
    return np.array(counts, np.int64).T


def open_pair(
    pair: LabelledPair,
    *,
    shape_for: Callable[[Stack], tuple[Any, list[str]]] = lambda stack: (stack.shape, []),
    normalizer: PercentileNormalizer | None = None,
    **reading: Any,
) -> LabelledStack:
    """Read a pair, and keep it as a network sees it: its grey values from 0 to 1, its own voxels.

    ``reading`` is for :func:`reading_pair`. The network sees the shape that ``shape_for`` returns
    with lines that say why, and grey values by ``normalizer``, or the rule of volumes. Raises
    UserError as :func:`reading_pair` and :meth:`OpenPair.count`; for an image of one grey value
    alone, and where the temporary folder has no room.
    """
    normalizer = normalizer or PercentileNormalizer()
    with reading_pair(pair, **reading) as opened:
        ids = opened.count()[2]
        limits = measure_limits(opened.image, normalizer)
        if not limits.high > limits.low:
            raise UserError(f"{pair.image}: nothing to see: nearly all voxels are {limits.low:g}")
        shape, reasons = shape_for(opened.image)
        scratch = _Scratch()
        needed, free = 5 * math.prod(shape), shutil.disk_usage(scratch.path).free
        if needed > free:
            room = f"{needed / 1e9:.1f} GB in {scratch.path.parent}, and {free / 1e9:.1f} are free"
            raise UserError(f"{pair.image}: needs {room}; TMPDIR names another folder")
        scale = functools.partial(normalizer.apply, low=limits.low, high=limits.high)
        target = _write(scratch.path, opened, shape, scale)
    columns = ids if ids > 1 else None
    if ids == 1 and math.prod(shape) <= MOST_COUNTED:
        columns = ndimage.label(target == 1)[1]
    box = tuple(slice(0, length) for length in shape)
    return LabelledStack(pair, scratch, box, normalizer, ids > 1, columns, tuple(reasons))


def _write(
    folder: Path, opened: OpenPair, shape: tuple[int, ...], scale: Callable[..., np.ndarray]
) -> np.ndarray:
    """Write image and target in the network's voxels, slab by slab; return the target."""
    source = opened.image.shape
    resampling = Resampling.between(source, shape)
    nearest = [_candidates(old, new) for old, new in zip(source, shape, strict=True)]
    made = {"mode": "w+", "shape": shape, "fortran_order": True}
    with disk_errors(folder, "written"):
        image = np.lib.format.open_memmap(folder / "image.npy", dtype=np.float32, **made)
        target = np.lib.format.open_memmap(folder / "target.npy", dtype=np.int8, **made)
    planes = planes_at_once(8 * math.prod(map(max, source[:-1], shape[:-1])))
    for start in range(0, shape[-1], planes):
        stop = min(start + planes, shape[-1])
        begin, end = resampling.needed(start, stop)
        read = opened.image.read(begin, end)
        grey = np.where(np.isfinite(read), scale(read), np.float32(0))  # as in prediction
        image[..., start:stop] = resampling.apply(grey, begin, start, stop)
        wanted = nearest[-1][:, start:stop]
        first = int(wanted.min())
        ids = opened.read_labels(first, int(wanted.max()) + 1)
        for axis, places in enumerate((*nearest[:-1], wanted - first)):
            whole, ids = ids, ids.take(places[0], axis)
            for other in places[1:]:  # so that no annotated plane gets lost between larger voxels
                ids = np.where(ids == UNKNOWN, whole.take(other, axis), ids)
        target[..., start:stop] = np.sign(ids)
    if not (target == 1).any():
        raise UserError(f"{opened.labels.path}: its labels are lost at the network's voxel size")
    return target


def _candidates(old: int, new: int) -> np.ndarray:
    """Return for each of ``new`` voxels the old ones within it, (n, new) int, the nearest first."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    reach = max(0, math.ceil((old / new - 1) / 2))
    steps = sorted(range(-reach, reach + 1), key=abs)
    return np.clip(np.rint(centres).astype(int) + np.array(steps)[:, None], 0, old - 1)


@dataclass(eq=False, repr=False)
class LabelledDataset(EpochDataset):
    """Patches of labelled stacks of any sizes: (image, target), each (1, p, p, p) or (1, p, p).

    Both are float32: the image lies in 0..1, the target is 0, 1, or -1 where nobody annotated. A
    patch lies about an annotated voxel that is drawn at random, and where it can be has at most
    ``background_threshold`` background among what is annotated. Stacks come in seeded random
    orders, one after the other across epochs, so that all are used evenly; one that is smaller than
    a patch is mirrored at its borders, without labels there. An epoch has ``patches_per_epoch``
    items; by default as many as it takes to lay patches over all stacks once.

    Raises UserError for a stack of other axes than ``spatial_dims``, or a number out of range.
    """

    stacks: Sequence[LabelledStack]
    _: KW_ONLY
    patch_size: int = 64
    spatial_dims: int = 3
    background_threshold: float = 0.95
    seed: int = 0
    patches_per_epoch: int | None = None

    def __post_init__(self) -> None:
        super().__init__()
        for stack in self.stacks:
            if (axes := len(stack.shape)) != self.spatial_dims:
                has = f"has {axes} axes, and {self.spatial_dims} are needed"
                raise UserError(f"{stack.pair.image}: {has}; train_basic_{axes}dunet.py takes it")
        edge, number = self.patch_size, self.patches_per_epoch
        check_patches((edge,), edge, self.background_threshold, patches_per_epoch=number)
        self.normalizer = self.stacks[0].normalizer
        self.patch_shape = (edge,) * self.spatial_dims
        self.seed = check_seed(self.seed)

    def __len__(self) -> int:
        covering = (math.prod(-(-n // self.patch_size) for n in one.shape) for one in self.stacks)
        return self.patches_per_epoch or sum(covering)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        item = item_index(item, len(self))
        place = in_turn(self.seed, self.epoch * len(self) + item, len(self.stacks))
        stack = self.stacks[place]
        image, target = stack.image, stack.target
        rng = make_rng(Purpose.PATCH, self.seed, self.epoch, item)
        slices = self._choose(stack, target, rng)
        missing = [p - (s.stop - s.start) for p, s in zip(self.patch_shape, slices, strict=True)]
        pads = [(n // 2, n - n // 2) for n in missing]
        seen = np.pad(image[slices], pads, mode="reflect")
        drawn = np.pad(target[slices], pads, constant_values=UNKNOWN).astype(np.float32)
        return torch.from_numpy(seen)[None], torch.from_numpy(drawn)[None]

    def describe(self) -> list[dict[str, Any]]:
        """Return of each stack its file, its part, and how much is annotated and labelled."""
        return [stack.describe() for stack in self.stacks]

    def _choose(self, stack: LabelledStack, target: np.ndarray, rng: np.random.Generator) -> Slices:
        """Return a patch, no longer than the stack, about an annotated voxel of it."""
        shape = np.array(stack.shape)
        patch = np.minimum(self.patch_shape, shape)
        for attempt in range(TRIES + 1):
            counts = stack.annotated if attempt < TRIES else stack.labelled
            z = int(rng.choice(len(counts), p=counts / counts.sum()))
            plane = target[..., z] != UNKNOWN if attempt < TRIES else target[..., z] == 1
            voxel = np.array([*np.unravel_index(rng.choice(np.flatnonzero(plane)), plane.shape), z])
            corner = np.clip(voxel - rng.integers(patch), 0, shape - patch)
            slices = patch_slices(corner, tuple(patch))
            drawn = target[slices]
            known = np.count_nonzero(drawn != UNKNOWN)
            if np.count_nonzero(drawn == 1) >= (1 - self.background_threshold) * known:
                break
        return slices
