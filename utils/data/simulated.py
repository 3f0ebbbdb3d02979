"""Patches of volumes that are simulated while training goes on, without end and without files.

Volume v of epoch e follows from (seed, e, v) alone, so that any number of worker processes gives
the same batches to the bit, no volume comes twice, and none is a sample of a file of the same seed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from utils.data.augmentation import Augmentation, augmentation_rng
from utils.data.epochs import EpochDataset
from utils.data.indexing import item_index
from utils.data.normalize import PercentileNormalizer
from utils.data.patches import choose_patch
from utils.errors import UserError
from utils.simulation.streams import Purpose, check_seed, make_rng
from utils.simulation.volume import SimulatedVolume, VolumeConfig, sample_rng, simulate_volume
from utils.storage import stored_image

BUFFERED_VOLUMES = 8
"""Volumes whose patches wait in the training process to be mixed into batches."""

_TINY = VolumeConfig(shape=(32, 32, 32), lattice_intervals=(4, 5), min_columns=5)


class OnTheFly3DDataset(EpochDataset):
    """Patches with enough foreground: (image, mask), each (1, p, p, p) float32.

    ``patches_per_volume`` patches are cut from each volume at random (they may overlap), by the
    rules of :class:`utils.data.volumes.SegmentationFake3DDataset`: at most ``background_threshold``
    background, grey values rounded as in a file and scaled by the whole volume's percentiles.
    Items stand in the order of their volumes; training takes them mixed, from :meth:`make_loader`,
    for which a volume is simulated once. Item by item only the last volume is remembered.

    Raises UserError if the patch is larger than the volumes or a number is out of range, and
    GeometryError, at an item, if ``config`` admits no volume.
    """

    makes_batches = True

    def __init__(
        self,
        config: VolumeConfig,
        *,
        patch_size: int = 64,
        background_threshold: float = 0.95,
        seed: int = 0,
        patches_per_epoch: int = 2048,
        patches_per_volume: int = 8,
        augment: str = "none",
        normalizer: PercentileNormalizer | None = None,
    ) -> None:
        _check_numbers(config, patch_size, background_threshold)
        for name, count in (("epoch", patches_per_epoch), ("volume", patches_per_volume)):
            if count < 1:
                raise UserError(f"patches_per_{name} must be at least 1, got {count}")
        self.config = config
        self.patch_size = patch_size
        self.background_threshold = background_threshold
        self.seed = check_seed(seed)
        self.patches_per_epoch = patches_per_epoch
        self.patches_per_volume = patches_per_volume
        self.augmentation = Augmentation(augment)
        self.normalizer = normalizer or PercentileNormalizer()
        self.meter = RateMeter()
        # In shared memory, so that workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._last: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        return self.patches_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch whose items are given."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose patches are given from now on, in all worker processes."""
        self._epoch.fill_(epoch)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """Return image and mask, (1, p, p, p) float32, of one patch."""
        volume, place = divmod(item_index(item, len(self)), self.patches_per_volume)
        if self._last is None or self._last[0] != (self.epoch, volume):
            self._last = (self.epoch, volume), self.cut_patches(volume, self.patches_per_volume)
        images, masks = self._last[1]
        return images[place].clone(), masks[place].float()

    def get_volume(self, index: int) -> SimulatedVolume:
        """Return a whole volume of this epoch with everything that is known about it."""
        return simulate_volume(self.config, self._rng(index))

    def cut_patches(self, index: int, count: int) -> tuple[Tensor, Tensor]:
        """Return images float32 and masks uint8, (count, 1, p, p, p), of a volume's patches."""
        rng = self._rng(index)
        volume = simulate_volume(self.config, rng)
        whole, low, high = self._scaling(volume.image)
        mask = volume.mask
        items = []
        for place in range(count):
            slices, labels = choose_patch(
                mask.__getitem__,
                self.config.shape,
                (self.patch_size,) * 3,
                self.background_threshold,
                rng,
            )
            image = self.normalizer.apply(whole[slices], low, high)
            item = torch.from_numpy(image)[None], torch.from_numpy(labels)[None]
            number = index * self.patches_per_volume + place
            items.append(self.augmentation(self._augmentation_rng(number), *item))
        images, masks = zip(*items, strict=True)
        return torch.stack(images), torch.stack(masks)

    def make_loader(
        self,
        batch_size: int,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> DataLoader:
        """Return a loader of mixed batches (images, masks), both (batch, 1, p, p, p) float32.

        Args:
            batch_size: patches in a batch of all processes together, of which each takes the same
                whole number; a last batch that is one patch is left out where there are others,
                since batch norm would take its statistics from it.
            num_workers: processes that simulate; 0 does it in the calling process.
            pin_memory: whether to put batches where a GPU copies them from at once.
            rank: which of the ``world_size`` processes that train together asks. It takes every
                ``world_size``-th volume, and the same number of patches as all others.
            world_size: see there.

        Raises:
            UserError: fewer patches in a batch or an epoch than processes.
        """
        if min(batch_size, self.patches_per_epoch) < world_size:
            raise UserError(
                f"{world_size} devices cannot share batches of {batch_size} patches, "
                f"{self.patches_per_epoch} an epoch; lower --devices, or raise --batch_size "
                "(and --patches_per_epoch)"
            )
        share = Share(self.patches_per_epoch // world_size, rank, world_size)
        if num_workers:
            simulate_volume(_TINY, sample_rng(0, 0))  # compiles the kernels once, before the fork
        # Generators of their own keep the loaders from drawing from torch's.
        volumes = DataLoader(
            VolumesOfEpoch(self, share),
            batch_size=None,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            generator=torch.Generator(),
        )
        mixer = PatchMixer(self, share, volumes, batch_size // world_size)
        return DataLoader(
            mixer, batch_size=None, pin_memory=pin_memory, generator=torch.Generator()
        )

    def epoch_record(self) -> dict[str, float]:
        """Return how fast the loader's last epoch came: see :meth:`RateMeter.record`."""
        return self.meter.record()

    def describe(self) -> dict[str, Any]:
        """Return the volumes' parameters, the seed and the patches of each volume."""
        return {
            "on_the_fly": self.config.to_dict(),
            "seed": self.seed,
            "patches_per_volume": self.patches_per_volume,
        }

    def _rng(self, index: int) -> np.random.Generator:
        return make_rng(Purpose.LIVE_VOLUME, self.seed, self.epoch, index)

    def _augmentation_rng(self, item: int) -> np.random.Generator:
        return augmentation_rng(self.seed, self.epoch, item)

    def _scaling(self, image: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Return the image as a file would hold it, and what the normaliser fits to it."""
        rounded, percentiles = stored_image(image)
        if self.normalizer != PercentileNormalizer():
            return rounded, *self.normalizer.fit(rounded.astype(np.float32))
        return rounded, float(percentiles[0]), float(percentiles[1])


@dataclass(frozen=True)
class Share:
    """What one of several training processes takes of an epoch."""

    num_patches: int
    rank: int
    world_size: int

    def num_volumes(self, patches_per_volume: int) -> int:
        """Return how many volumes that takes."""
        return -(-self.num_patches // patches_per_volume)


class VolumesOfEpoch(Dataset[tuple[Tensor, Tensor]]):
    """All patches of a volume as one item: the volumes of one share of an epoch, in order."""

    def __init__(self, source: OnTheFly3DDataset, share: Share) -> None:
        self.source = source
        self.share = share

    def __len__(self) -> int:
        """Return the number of volumes."""
        return self.share.num_volumes(self.source.patches_per_volume)

    def __getitem__(self, place: int) -> tuple[Tensor, Tensor]:
        """Return images float32 and masks uint8, (patches, 1, p, p, p)."""
        each = self.source.patches_per_volume
        volume = self.share.rank + place * self.share.world_size
        return self.source.cut_patches(volume, min(each, self.share.num_patches - place * each))


class PatchMixer(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches drawn from the patches of several volumes at a time, in a bounded buffer.

    Before each batch the buffer is filled with whole volumes as they come, up to the patches of
    :data:`BUFFERED_VOLUMES` volumes (or two batches, if that is more); the batch is drawn from it
    without replacement. So the order depends on (seed, epoch, rank) and on nobody's speed.
    """

    def __init__(
        self, source: OnTheFly3DDataset, share: Share, volumes: DataLoader, batch_size: int
    ) -> None:
        self.source = source
        self.share = share
        self.volumes = volumes
        self.batch_size = batch_size

    @property
    def capacity(self) -> int:
        """Most patches that wait in the buffer."""
        each = self.source.patches_per_volume
        return each * max(BUFFERED_VOLUMES, -(-2 * self.batch_size // each))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-self._num_patches() // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the source's epoch; its meter runs with them."""
        rng = self._rng()
        buffer = PatchBuffer(self.capacity, self.source.patch_size)
        meter = self.source.meter
        volumes, expected = iter(self.volumes), len(self.volumes)
        meter.start(self.share.world_size)
        left = self._num_patches()
        while left:
            while buffer.room >= self.source.patches_per_volume and meter.volumes < expected:
                with meter.waiting_for_volume():
                    patches = next(volumes)
                buffer.put(*patches)
            size = min(self.batch_size, left)
            meter.batch_done(size)
            yield buffer.take(size, rng)
            left -= size

    def _num_patches(self) -> int:
        """Return the patches that end up in batches."""
        number = self.share.num_patches
        lonely = number > self.batch_size > 1 and number % self.batch_size == 1
        return number - lonely

    def _rng(self) -> np.random.Generator:
        source = self.source
        return make_rng(Purpose.MIXING, source.seed, source.epoch, self.share.rank)


class PatchBuffer:
    """Room for a fixed number of patches, from which random ones are taken."""

    def __init__(self, capacity: int, patch_size: int) -> None:
        shape = (capacity, 1, *(patch_size,) * 3)
        self.images = torch.empty(shape)
        self.masks = torch.empty(shape, dtype=torch.uint8)
        self._slots = np.arange(capacity)  # the filled ones first
        self._count = 0

    @property
    def room(self) -> int:
        """Patches that still fit in."""
        return len(self._slots) - self._count

    def put(self, images: Tensor, masks: Tensor) -> None:
        """Add patches, at most as many as there is room for."""
        slots = torch.from_numpy(self._slots[self._count : self._count + len(images)])
        self.images[slots], self.masks[slots] = images, masks
        self._count += len(images)

    def take(self, number: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Remove random patches; return images and masks, (number, 1, p, p, p) float32."""
        chosen = rng.choice(self._count, number, replace=False)
        filled, slots = self._slots[: self._count], self._slots[chosen]
        self._slots = np.concatenate([np.delete(filled, chosen), slots, self._slots[self._count :]])
        self._count -= number
        where = torch.from_numpy(slots)
        return self.images[where], self.masks[where].float()


class RateMeter:
    """How fast the patches of an epoch come, and how long training waits for them."""

    def __init__(self) -> None:
        self.start()

    def start(self, processes: int = 1) -> None:
        """Begin an epoch that ``processes`` share evenly."""
        self._processes = processes
        self.volumes, self.patches = 0, 0
        self.seconds, self.waited = 0.0, 0.0
        self._started = time.perf_counter()

    @contextmanager
    def waiting_for_volume(self) -> Iterator[None]:
        """Count one volume, and the time within the block as waiting."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began
        self.volumes += 1

    def batch_done(self, patches: int) -> None:
        """Count a batch."""
        self.patches += patches
        self.seconds = time.perf_counter() - self._started

    def record(self) -> dict[str, float]:
        """Return the rates up to the last batch, for ``logs.json``; empty before the first.

        They are of all processes together, the waiting of this one.
        """
        if not self.seconds:
            return {}
        return {
            "volumes_per_second": self._processes * self.volumes / self.seconds,
            "patches_per_second": self._processes * self.patches / self.seconds,
            "seconds_waiting_for_data": self.waited,
        }


def _check_numbers(config: VolumeConfig, patch_size: int, background_threshold: float) -> None:
    if not 1 <= patch_size <= min(config.shape):
        raise UserError(
            f"a patch of {patch_size} voxels an edge does not fit into volumes of {config.shape}"
        )
    if not 0 <= background_threshold <= 1:
        raise UserError(f"background_threshold must be in 0..1, got {background_threshold}")
