"""Patches of volumes that are simulated while training goes on, alone or beside real ones.

Volume v of epoch e follows from (seed, e, v) alone, so that any number of worker processes gives
the same batches to the bit, no volume comes twice, and none is a sample of a file of the same seed.
Real patches stand beside them in every batch, so that what was known is not forgotten.
"""

import time
from collections.abc import Iterator
from dataclasses import KW_ONLY, InitVar, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from utils.data.augmentation import Augmentation, AugmentedDataset
from utils.data.epochs import EpochDataset, item_index, own_loader
from utils.data.volumes import check_patches, choose_patch
from utils.errors import UserError
from utils.provenance import DATA_VERSION
from utils.simulation.streams import Purpose, check_seed, make_rng
from utils.simulation.volume import (
    Config,
    Mixture,
    SimulatedVolume,
    compile_kernels,
    simulate_volume,
)
from utils.storage import stored_image

MEASURED_VOLUMES = 8  # whose columns' spacing stands for all
BUFFERED_VOLUMES = 8  # volumes whose patches wait in the training process to be mixed into batches


@dataclass(eq=False, repr=False)
class OnTheFly3DDataset(EpochDataset):
    """Patches with enough foreground: (image, mask), each (1, p, p, p) float32.

    ``patches_per_volume`` patches are cut from each volume at random (they may overlap), by the
    rules of :class:`utils.data.volumes.SegmentationFake3DDataset`: at most ``background_threshold``
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
        volume, rng = self._simulate(index)
        whole, percentiles = stored_image(volume.image)
        read_mask, patch_shape = volume.mask.__getitem__, (self.patch_size,) * 3
        cutting = (read_mask, self.volume_shape, patch_shape, self.background_threshold, rng)
        patches = []
        for place in range(self.patches_per_volume):
            slices, labels = choose_patch(*cutting)
            image = self.normalizer.apply(whole[slices], *percentiles.tolist())
            item = index * self.patches_per_volume + place
            changes = make_rng(Purpose.AUGMENTATION, self.seed, self.epoch, item)
            patch = torch.from_numpy(image)[None], torch.from_numpy(labels)[None]
            patches.append(self.augmentation(changes, *patch))
        return patches

    def _simulate(self, index: int) -> tuple[SimulatedVolume, np.random.Generator]:
        """Return a volume of the epoch, and the stream of numbers as it leaves it."""
        rng = make_rng(Purpose.LIVE_VOLUME, self.seed, self.epoch, index)
        return simulate_volume(self.mixture.choose(self.seed, self.epoch, index), rng), rng

    def column_spacing(self) -> list[float]:
        """Return the columns' spacing in voxels along x, y, z: the median over eight volumes."""
        drawn = [self._simulate(index)[0].parameters for index in range(MEASURED_VOLUMES)]
        return np.median([d.spacing_voxels(self.volume_shape) for d in drawn], axis=0).tolist()

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


def split_batch(batch_size: int, share: float, ranks: int = 1) -> tuple[int, int]:
    """Return how many patches of a batch are simulated, ``round(share * batch_size)``, and real.

    Raises UserError where one of both is none, or ``ranks`` processes cannot share it evenly.
    """
    simulated = round(share * batch_size)
    real = batch_size - simulated
    if not simulated or not real:
        said = f"of a batch of {batch_size} patches that is {simulated}; every batch needs both"
        raise UserError(f"--mix {share:g}: {said}: raise --batch_size or choose another share")
    if simulated % ranks or real % ranks:
        said = f"{ranks} devices cannot share {simulated} simulated and {real} real patches evenly"
        raise UserError(f"--mix {share:g}: {said}; choose another --batch_size")
    return simulated, real


@dataclass(eq=False, repr=False)
class MixedDataset(EpochDataset):
    """Items of two data sets in batches that hold the same number of each, simulated ones first.

    ``parts`` says how many of each, see :func:`split_batch`; both sets must have as many items an
    epoch as whole batches take. Items that their set does not make batches of are changed at random
    at level ``augment``, from ``seed``.
    """

    makes_batches = True

    simulated: EpochDataset
    real: EpochDataset
    parts: tuple[int, int]
    augment: InitVar[str] = "none"
    seed: InitVar[int] = 0

    def __post_init__(self, augment: str, seed: int) -> None:
        super().__init__()
        self.plain = (self.simulated, self.real)
        self.sets = [
            one if one.makes_batches else AugmentedDataset(one, augment, seed) for one in self.plain
        ]
        self.normalizer = self.real.normalizer
        sizes = [len(one) for one in self.plain]
        batches = {size / part for size, part in zip(sizes, self.parts, strict=True)}
        if len(batches) != 1 or not min(batches).is_integer():
            raise ValueError(f"{sizes[0]} and {sizes[1]} items in batches of {self.parts}")

    def __len__(self) -> int:
        return len(self.simulated) + len(self.real)

    def __getitem__(self, item: int) -> tuple[Tensor, ...]:
        """Return an item, by its place in the batches one after the other."""
        batch, place = divmod(item_index(item, len(self)), sum(self.parts))
        which = int(place >= self.parts[0])
        place -= which * self.parts[0]
        return self.sets[which][batch * self.parts[which] + place]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, here and in both sets, in all worker processes."""
        super().set_epoch(epoch)
        for one in self.sets:
            one.set_epoch(epoch)

    def make_loader(
        self, batch_size: int, num_workers: int = 0, rank: int = 0, world_size: int = 1, **how: Any
    ) -> DataLoader:
        """Return a loader of batches (images, masks), both (batch, 1, *space) float32.

        Args as of :meth:`OnTheFly3DDataset.make_loader`; the batch size is the sum of the parts.
        The workers are for the simulated items, one more for the real ones.
        """
        if batch_size != sum(self.parts):
            raise ValueError(f"batches of {batch_size} of the parts {self.parts}")
        loaders = []
        for one, part in zip(self.sets, self.parts, strict=True):
            workers = num_workers if one is self.sets[0] else min(num_workers, 1)
            if one.makes_batches:
                sharing = {"num_workers": num_workers, "rank": rank, "world_size": world_size}
                loaders.append(one.make_loader(part, **sharing))
            else:
                starts = range(0, len(one), part)
                batches = [range(a, a + part)[rank::world_size] for a in starts]
                loaders.append(own_loader(one, workers, batch_sampler=batches))
        return own_loader(JoinedBatches(loaders), batch_size=None, **how)

    def epoch_record(self) -> dict[str, float]:
        """Return what the simulated set has measured."""
        return self.simulated.epoch_record()

    def describe(self) -> list[dict[str, Any]]:
        """Return what both sets say, with the number of their items in a batch."""
        said = []
        for one, part in zip(self.plain, self.parts, strict=True):
            about = one.describe()
            entries = about if isinstance(about, list) else [about]
            said += [{**entry, "in_a_batch": part} for entry in entries]
        return said


@dataclass(eq=False)
class JoinedBatches(IterableDataset[tuple[Tensor, ...]]):
    """The batches of several loaders of equal length, each joined to one."""

    loaders: list[DataLoader]

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for batches in zip(*self.loaders, strict=True):
            yield tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
