"""Simulated patches beside real ones in every batch, so that what was known is not forgotten.

Items, and with them batches, depend on (seed, epoch, index) alone, whatever the worker processes.
"""

from collections.abc import Iterator
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from utils.data.augmentation import AugmentedDataset
from utils.data.epochs import EpochDataset, item_index, own_loader
from utils.errors import UserError


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

        Args as of :meth:`utils.data.volumes.OnTheFly3DDataset.make_loader`; the batch size is the
        sum of the parts. The workers are for the simulated items, one more for the real ones.
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
