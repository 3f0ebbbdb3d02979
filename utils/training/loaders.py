"""How the items of a data set become the batches of an epoch, in one or several processes.

Epochs are counted from 1. A batch is (images, masks), both (batch, 1, *space) float32.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Sampler

from utils.data.epochs import EpochDataset
from utils.simulation.streams import Purpose, make_rng
from utils.training.fabric import loader_processes
from utils.training.options import TrainingOptions
from utils.training.ranks import own_block, rank, world_size


@dataclass(eq=False)
class EpochSampler(Sampler[int]):
    """All indices in an order that depends on ``seed`` and ``epoch`` alone; set the latter.

    Without ``shuffle`` they come as they are.
    """

    length: int
    seed: int
    shuffle: bool = True
    epoch: int = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.length))
        rng = make_rng(Purpose.BATCH_ORDER, self.seed, self.epoch)
        return iter(rng.permutation(self.length).tolist())


class BatchShares(Sampler[list[int]]):
    """Of each batch of ``batch_size`` indices the part of one rank: every ``ranks``-th of them.

    A last batch that is too small is left out where there are others: one that leaves a rank a
    single sample, from which batch norm would take its statistics, unless a rank's part of any
    batch is one sample; and one that leaves a rank none. There must be as many samples as ranks.
    """

    def __init__(self, order: EpochSampler, batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.ranks = ranks
        self._used = len(order)
        rest = len(order) % batch_size
        if rest and rest < len(order) and rest // ranks < min(2, batch_size // ranks):
            self._used -= rest

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on all ranks."""
        return -(-self._used // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(self.order)[: self._used]
        for start in range(0, self._used, self.batch_size):
            yield indices[start : start + self.batch_size][self.rank :: self.ranks]

    def weight(self, batch: int) -> float:
        """Return the rank's share of batch number ``batch`` (from 1), in units of an even share."""
        whole = min(self.batch_size, self._used - (batch - 1) * self.batch_size)
        return len(range(self.rank, whole, self.ranks)) * self.ranks / whole


def loss_weight(loader: object, batch: int) -> float:
    """Return the factor on the loss of ``batch`` (from 1), 1 where a loader shares no batches."""
    shares = getattr(loader, "batch_sampler", None)
    return shares.weight(batch) if isinstance(shares, BatchShares) else 1.0


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
