"""Random patches of simulated volumes: of those in HDF5 files, or made while training goes on.

Which patch item k of epoch e shows depends on (seed, e, k) alone, so that any number of worker
processes, forked or spawned, sees the same; each opens the files for itself, at first use. Volume v
that is made for epoch e follows from (seed, e, v): none comes twice, and none is a sample of a file
of the same seed. A corner is the first voxel of a patch; masks are 0/1.
"""

import functools
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from utils.data.augmentation import Augmentation, augmentation_rng
from utils.data.epochs import EpochDataset, in_turn, item_index, own_loader
from utils.errors import UserError
from utils.provenance import DATA_VERSION
from utils.simulation.presets import Config, Mixture, compile_kernels
from utils.simulation.streams import Purpose, check_seed, make_rng
from utils.simulation.volume import simulate_volume
from utils.storage import VolumeFile, stored_image, version_note

FilePath = str | os.PathLike[str]
Slices = tuple[slice, ...]

_READ_TRIES = 4  # patches read from a file before its whole mask, which costs as much as three
_TRIES = 200  # misses before all corners are counted
BUFFERED_VOLUMES = 8  # volumes whose patches wait in the training process to be mixed into batches


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


@dataclass(eq=False, repr=False)
class OnTheFly3DDataset(EpochDataset):
    """Patches with enough foreground: (image, mask), each (1, p, p, p) float32.

    ``patches_per_volume`` patches are cut from each volume at random (they may overlap), by the
    rules of :class:`SegmentationFake3DDataset`: at most ``background_threshold``
    background, grey values rounded as in a file and scaled by the whole volume's percentiles.
    Items stand in the order of their volumes, of which the last is remembered; training takes them
    mixed, from :meth:`make_loader`. Of a :class:`Mixture` each volume has the configuration that
    (seed, epoch, volume) chooses.

    Raises UserError if the patch is larger than the volumes or a number is out of range, and
    GeometryError, at an item, if ``config`` admits no volume.
    """

    makes_batches = True

    config: InitVar[Config | Mixture]
    _: KW_ONLY
    patch_size: int = 64
    background_threshold: float = 0.95
    seed: int = 0
    patches_per_epoch: int = 2048
    patches_per_volume: int = 8
    augment: InitVar[str] = "none"

    def __post_init__(self, config: Config | Mixture, augment: str) -> None:
        super().__init__()
        self.mixture = config if isinstance(config, Mixture) else Mixture(((config, 1.0),))
        self.volume_shape = self.mixture.configs[0].shape
        counts = {name: getattr(self, name) for name in ("patches_per_epoch", "patches_per_volume")}
        check_patches(self.volume_shape, self.patch_size, self.background_threshold, **counts)
        self.seed = check_seed(self.seed)
        self.augmentation = Augmentation(augment)
        self.measured: dict[str, float] = {}  # by the latest epoch's :class:`PatchMixer`
        self._last: tuple[tuple[int, int], list[tuple[Tensor, ...]]] | None = None

    def __len__(self) -> int:
        return self.patches_per_epoch

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """Return a patch; its image is the one that is remembered: copy it before you change it."""
        volume, place = divmod(item_index(item, len(self)), self.patches_per_volume)
        if self._last is None or self._last[0] != (self.epoch, volume):
            self._last = (self.epoch, volume), self.cut_patches(volume)
        image, mask = self._last[1][place]
        return image, mask.float()

    def cut_patches(self, index: int) -> list[tuple[Tensor, ...]]:
        """Return image float32 and mask uint8, (1, p, p, p), of each patch of a volume."""
        rng = make_rng(Purpose.LIVE_VOLUME, self.seed, self.epoch, index)
        volume = simulate_volume(self.mixture.choose(self.seed, self.epoch, index), rng)
        whole, percentiles = stored_image(volume.image)
        read_mask, patch_shape = volume.mask.__getitem__, (self.patch_size,) * 3
        cutting = (read_mask, self.volume_shape, patch_shape, self.background_threshold, rng)
        patches = []
        for place in range(self.patches_per_volume):
            slices, labels = choose_patch(*cutting)
            image = self.normalizer.apply(whole[slices], *percentiles.tolist())
            item = index * self.patches_per_volume + place
            changes = augmentation_rng(self.seed, self.epoch, item)
            patch = torch.from_numpy(image)[None], torch.from_numpy(labels)[None]
            patches.append(self.augmentation(changes, *patch))
        return patches

    def make_loader(
        self, batch_size: int, num_workers: int = 0, rank: int = 0, world_size: int = 1, **how: Any
    ) -> DataLoader:
        """Return a loader of mixed batches (images, masks), both (batch, 1, p, p, p) float32.

        Of ``world_size`` processes that train together each takes the same whole number of the
        ``batch_size`` patches of a batch, from its ``rank``'s block of the epoch's items. A last
        batch of one patch is left out where there are others, since batch norm would take its
        statistics from it. ``num_workers`` processes simulate; 0 does it in the calling one.
        ``how`` is for torch, such as ``pin_memory``.
        """
        own_batch, count = batch_size // world_size, self.patches_per_epoch // world_size
        items = range(rank * count, (rank + 1) * count)
        if count > own_batch > 1 and count % own_batch == 1:
            items = items[:-1]
        if num_workers:
            compile_kernels(*self.mixture.configs)
        volumes = groupby(items, lambda item: item // self.patches_per_volume)
        patches = own_loader(self, num_workers, batch_sampler=[[*items] for _, items in volumes])
        mixer = PatchMixer(self, patches, len(items), own_batch, rank, world_size)
        return own_loader(mixer, batch_size=None, **how)

    def epoch_record(self) -> dict[str, float]:
        """Return the last epoch's volumes a second of all processes, and how long this waited."""
        return self.measured

    def describe(self) -> dict[str, Any]:
        """Return the volumes' parameters and version, the seed and the patches of each volume."""
        cut = {"seed": self.seed, "patches_per_volume": self.patches_per_volume}
        return {"on_the_fly": self.mixture.to_dict(), **cut, "version": DATA_VERSION}


@dataclass(eq=False)
class PatchMixer(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches drawn from the patches of several volumes at a time.

    Before each batch whole volumes are taken as they come, up to the patches of
    :data:`BUFFERED_VOLUMES` volumes (or two batches, if that is more); the batch is drawn from them
    without replacement. So the order depends on (seed, epoch, rank) and on nobody's speed.
    """

    source: OnTheFly3DDataset
    volumes: DataLoader
    num_patches: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return -(-self.num_patches // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        source = self.source
        rng = make_rng(Purpose.MIXING, source.seed, source.epoch, self.rank)
        each = source.patches_per_volume
        most = each * max(BUFFERED_VOLUMES, -(-2 * self.batch_size // each))
        waiting: list[tuple[Tensor, Tensor]] = []
        taken, waited, started = 0, 0.0, time.perf_counter()
        source.measured = {}
        volumes = iter(self.volumes)
        for first in range(0, self.num_patches, self.batch_size):
            began = time.perf_counter()
            while len(waiting) + each <= most and taken < len(self.volumes):
                patches = zip(*next(volumes), strict=True)
                # Copies: else one patch would keep its whole volume in the workers' shared memory.
                waiting += [(image.clone(), mask.clone()) for image, mask in patches]
                taken += 1
            now = time.perf_counter()
            waited += now - began
            rate = self.world_size * taken / (now - started)
            source.measured = {"volumes_per_second": rate, "seconds_waiting_for_data": waited}
            size = min(self.batch_size, self.num_patches - first)
            chosen = rng.choice(len(waiting), size, replace=False).tolist()
            images, masks = zip(*(waiting[place] for place in chosen), strict=True)
            waiting = [patch for place, patch in enumerate(waiting) if place not in chosen]
            yield torch.stack(images), torch.stack(masks)
