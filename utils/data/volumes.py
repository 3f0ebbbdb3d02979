"""Random patches with enough foreground, and the data set of those of volumes in HDF5 files.

Which patch item k of epoch e shows depends on (seed, e, k) alone, so that any number of worker
processes, forked or spawned, sees the same. Each process opens the files for itself, at first use.
A corner is the first voxel of a patch, a patch the voxels from its corner on; masks are 0/1.
"""

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.data.epochs import EpochDataset, in_turn, item_index
from utils.errors import UserError
from utils.simulation.streams import Purpose, check_seed, make_rng
from utils.storage import VolumeFile, version_note

FilePath = str | os.PathLike[str]
Slices = tuple[slice, ...]

_READ_TRIES = 4  # patches read from a file before its whole mask, which costs as much as three
_TRIES = 200  # misses before all corners are counted


def patch_slices(corner: np.ndarray, patch_shape: tuple[int, ...]) -> Slices:
    """Return the slices of the patch at ``corner``."""
    return tuple(slice(int(a), int(a) + p) for a, p in zip(corner, patch_shape, strict=True))


def box_counts(mask: np.ndarray, patch_shape: tuple[int, ...]) -> np.ndarray:
    """Return the labelled voxels of the patch at each corner, int32.

    Shape: ``mask.shape - patch_shape + 1``. Sums along one axis after the other, each the
    difference of a running sum with itself shifted by the patch's edge.
    """
    counts = mask
    for axis, edge in enumerate(patch_shape):
        running = np.cumsum(np.insert(counts, 0, 0, axis), axis, dtype=np.int32)
        length = running.shape[axis]
        counts = running.take(range(edge, length), axis) - running.take(range(length - edge), axis)
    return counts


def check_patches(
    shape: tuple[int, ...], patch_size: int, background_threshold: float, **counts: int | None
) -> None:
    """Raise UserError for patches that do not fit, a share outside 0..1, or a count below 1."""
    if not 1 <= patch_size <= min(shape):
        fits = f"does not fit into volumes of {shape}"
        raise UserError(f"a patch of {patch_size} voxels an edge {fits}")
    if not 0 <= background_threshold <= 1:
        raise UserError(f"background_threshold must be in 0..1, got {background_threshold}")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UserError(f"{name} must be at least 1, got {count}")


def choose_patch(
    read_mask: Callable[[Slices], np.ndarray],
    shape: tuple[int, ...],
    patch_shape: tuple[int, ...],
    max_background: float,
    rng: np.random.Generator,
) -> tuple[Slices, np.ndarray]:
    """Return the slices of a random patch, and its mask, with at most ``max_background``.

    Uniform over all corners whose patch is labelled in a share of at least ``1 - max_background``:
    by rejection, and after many misses from the counts of all corners. Where none has enough, the
    densest (the first of equals). ``read_mask`` returns the mask within slices: a file's reader or
    an array's ``__getitem__``; it is called for the first few patches and then once for the whole
    mask.
    """
    # Rounded so that 0.95 of 20 voxels leaves 1, not 2.
    enough = int(np.ceil(round((1 - max_background) * np.prod(patch_shape), 6)))
    corners = np.subtract(shape, patch_shape) + 1
    for tries in (_READ_TRIES, _TRIES - _READ_TRIES):
        for _ in range(tries):
            slices = patch_slices(rng.integers(corners), patch_shape)
            mask = read_mask(slices)
            if np.count_nonzero(mask) >= enough:
                return slices, mask
        whole = read_mask(patch_slices(np.zeros(len(shape)), shape))
        read_mask = whole.__getitem__
    counts = box_counts(whole, patch_shape)
    valid = np.flatnonzero(counts >= enough)
    flat = rng.choice(valid) if valid.size else np.argmax(counts)
    slices = patch_slices(np.array(np.unravel_index(flat, counts.shape)), patch_shape)
    return slices, whole[slices]


@dataclass(eq=False, repr=False)
class SegmentationFake3DDataset(EpochDataset):
    """Patches with enough foreground: (image, mask), each (1, p, p, p) float32.

    The image lies in 0..1, scaled by its whole volume's percentiles; the mask is 0 or 1.
    ``background_threshold`` is the largest share of background in a patch; a volume without such
    patches gives its densest. An epoch has ``patches_per_epoch`` items (default: one a sample);
    where that is another number, the samples come in seeded random orders, one after the other
    across epochs, so that all are used evenly.

    Raises UserError, naming the file, if one is missing, broken, or of other voxel numbers than the
    first, if the patch is larger than the volumes or a number is out of range. Warns of files of
    another version of the program.
    """

    files: InitVar[FilePath | Sequence[FilePath]]
    _: KW_ONLY
    patch_size: int = 64
    background_threshold: float = 0.95
    seed: int = 0
    patches_per_epoch: int | None = None

    def __post_init__(self, files: FilePath | Sequence[FilePath]) -> None:
        super().__init__()
        paths = [files] if isinstance(files, str | os.PathLike) else files
        self.files = [VolumeFile(path) for path in paths]
        if not self.files:
            raise UserError("no data file given; generate_3d_data.py makes them")
        shapes, self._rows = [], []
        for file in self.files:
            with file:
                shapes.append(file.shape)
                self._rows += [(file, row) for row in range(len(file))]
                note = version_note(file.path, file.program_version)
            if note:
                warnings.warn(note, stacklevel=3)
            if shapes[-1] != shapes[0]:
                other = f"but {self.files[0].path} has {shapes[0]}"
                raise UserError(f"{file.path}: volumes of {shapes[-1]} voxels, {other}")
        self.volume_shape = shapes[0]
        self.seed = check_seed(self.seed)
        number = {"patches_per_epoch": self.patches_per_epoch}
        check_patches(self.volume_shape, self.patch_size, self.background_threshold, **number)

    @property
    def num_samples(self) -> int:
        """Volumes in all files together."""
        return len(self._rows)

    def __len__(self) -> int:
        return self.patches_per_epoch or self.num_samples

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        item = item_index(item, len(self))
        file, row = self._rows[self._sample(self.epoch, item)]
        shapes = self.volume_shape, (self.patch_size,) * 3
        rng = make_rng(Purpose.PATCH, self.seed, self.epoch, item)
        read_mask = functools.partial(file.read_mask, row)
        slices, mask = choose_patch(read_mask, *shapes, self.background_threshold, rng)
        image = self.normalizer.apply(file.read_image(row, slices), *file.percentiles(row))
        return torch.from_numpy(image)[None], torch.from_numpy(mask.astype(np.float32))[None]

    def describe(self) -> list[dict[str, Any]]:
        """Return name, seed, number of samples and the simulation's version of each file."""
        described = []
        for file in self.files:
            with file:
                found = {"file": str(file.path), "seed": file.seed, "samples": len(file)}
                described.append(found | {"version": file.program_version})
        return described

    def column_spacing(self) -> list[float]:
        """Return the columns' spacing in voxels along x, y, z: the median over 256 even samples."""
        chosen = np.unique(np.linspace(0, self.num_samples - 1, 256).round().astype(int))
        rows = [self._rows[sample] for sample in chosen]
        spacings = [f.parameters(row).spacing_voxels(self.volume_shape) for f, row in rows]
        for file in self.files:
            file.close()
        return np.median(spacings, axis=0).tolist()

    def _sample(self, epoch: int, item: int) -> int:
        """Return the sample that an item shows: itself, or its place in an endless even order."""
        if len(self) == self.num_samples:
            return item
        return in_turn(self.seed, epoch * len(self) + item, self.num_samples)
