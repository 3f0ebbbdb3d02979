"""How the items of a data set become the batches of an epoch, in one or several processes.

Epochs are counted from 1. A batch is (images, masks), both (batch, 1, *space) float32.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Sampler

from utils.data.epochs import EpochDataset
from utils.simulation.streams import Purpose, make_rng
from utils.training.fabric import loader_processes
from utils.training.options import TrainingOptions
from utils.training.ranks import BatchShares, own_block, rank, world_size


class EpochSampler(Sampler[int]):
    """All indices in an order that depends on ``seed`` and ``epoch`` alone; set the latter.

    Without ``shuffle`` they come as they are.
    """

    def __init__(self, length: int, seed: int, shuffle: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.length))
        rng = make_rng(Purpose.BATCH_ORDER, self.seed, self.epoch)
        return iter(rng.permutation(self.length).tolist())


def build_loader(
    fabric: Fabric,
    data: EpochDataset,
    options: TrainingOptions,
    sampler: EpochSampler | None = None,
) -> DataLoader:
    """Return a loader that ``fabric`` feeds to its device.

    With a ``sampler`` (training) batches follow its order, and a last batch of one sample is left
    out where there are others: batch norm would take its statistics, and the optimiser a whole
    step, from a single patch. Without one each item comes once, in order. Of several processes
    (ranks) each gets its part of every batch, or without a sampler its block of the items.
    """
    local_ranks = min(world_size(), getattr(fabric.strategy, "num_processes", 1))
    workers = loader_processes(options.num_workers, local_ranks)
    pin_memory = fabric.device.type == "cuda"
    if data.makes_batches:
        loader = data.make_loader(
            options.batch_size,
            num_workers=workers,
            pin_memory=pin_memory,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
        )
    else:
        if sampler:
            batches = BatchShares(sampler, options.batch_size, rank(), world_size())
        else:
            batches = even_batches(own_block(len(data)), -(-options.batch_size // world_size()))
        loader = DataLoader(
            data,
            batch_sampler=batches,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            # Its own, so that how often loaders begin leaves torch's global generator alone.
            generator=torch.Generator().manual_seed(options.seed),
        )
    return fabric.setup_dataloaders(loader, use_distributed_sampler=False)


def even_batches(indices: range, batch_size: int) -> list[range]:
    """Return ``indices`` in batches of nearly equal sizes, about ``batch_size`` or less.

    A lone one, for which there are no fast kernels, comes only where there is no other or
    ``batch_size`` is 1; an odd number in twos ends with a batch of three.
    """
    number = -(-len(indices) // batch_size)
    if batch_size > 1:
        number = min(number, max(1, len(indices) // 2))
    cuts = [k * len(indices) // number for k in range(number + 1)] if number else []
    return [indices[low:high] for low, high in zip(cuts, cuts[1:], strict=False)]
