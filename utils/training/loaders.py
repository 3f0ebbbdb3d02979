"""How the items of a data set become the batches of an epoch, in one or several processes.

Epochs are counted from 1. A batch is (images, masks), both (batch, 1, *space) float32.
"""

from collections.abc import Iterator

import torch
from lightning_fabric import Fabric
from torch.utils.data import DataLoader, Sampler

from utils.data.epochs import EpochDataset
from utils.simulation.streams import Purpose, make_rng
from utils.training.options import TrainingOptions
from utils.training.ranks import loader_processes, own_block, rank, world_size


class BatchShares(Sampler[list[int]]):
    """Of each batch of ``batch_size`` items the part of one rank: every ``ranks``-th of them.

    The order of an epoch depends on ``seed`` and the epoch of ``data`` alone; without ``shuffle``
    the items come as they are. A last batch that is too small is left out where there are others:
    one that leaves a rank a single sample, from which batch norm would take its statistics, unless
    a rank's part of any batch is one sample; and one that leaves a rank none. There must be as many
    items as ranks.
    """

    def __init__(
        self,
        data: EpochDataset,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data, self.batch_size = data, batch_size
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.ranks = rank, ranks
        self._used = len(data)
        rest = len(data) % batch_size
        if rest and rest < len(data) and rest // ranks < min(2, batch_size // ranks):
            self._used -= rest

    def __len__(self) -> int:
        """Return the number of batches in an epoch, the same on all ranks."""
        return -(-self._used // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        indices = list(range(len(self.data)))
        if self.shuffle:
            rng = make_rng(Purpose.BATCH_ORDER, self.seed, self.data.epoch)
            indices = rng.permutation(len(self.data)).tolist()
        for start in range(0, self._used, self.batch_size):
            batch = indices[start : min(start + self.batch_size, self._used)]
            yield batch[self.rank :: self.ranks]

    def weight(self, batch: int) -> float:
        """Return the rank's share of batch number ``batch`` (from 1), in units of an even share."""
        whole = min(self.batch_size, self._used - (batch - 1) * self.batch_size)
        return len(range(self.rank, whole, self.ranks)) * self.ranks / whole


def loss_weight(loader: object, batch: int) -> float:
    """Return the factor on the loss of ``batch`` (from 1), 1 where a loader shares no batches."""
    shares = getattr(loader, "batch_sampler", None)
    return shares.weight(batch) if isinstance(shares, BatchShares) else 1.0


def build_loader(
    fabric: Fabric, data: EpochDataset, options: TrainingOptions, *, training: bool = False
) -> DataLoader:
    """Return a loader that ``fabric`` feeds to its device.

    For ``training`` its batches are :class:`BatchShares`. Else each item comes once, in order; of
    several processes (ranks) each gets its block of the items.
    """
    number = world_size()
    local_ranks = min(number, getattr(fabric.strategy, "num_processes", 1))
    workers = loader_processes(options.num_workers, local_ranks)
    how = {"num_workers": workers, "pin_memory": fabric.device.type == "cuda"}
    if data.makes_batches:
        loader = data.make_loader(options.batch_size, rank=rank(), world_size=number, **how)
    else:
        batch_size, seed, shuffle = options.batch_size, options.seed, not options.no_shuffle
        if training:
            share = {"shuffle": shuffle, "rank": rank(), "ranks": number}
            batches = BatchShares(data, batch_size, seed, **share)
        else:
            batches = even_batches(own_block(len(data)), -(-batch_size // number))
        # Its own generator, so that how often loaders begin leaves torch's global one alone.
        own = torch.Generator().manual_seed(seed)
        how |= {"persistent_workers": workers > 0, "generator": own}
        loader = DataLoader(data, batch_sampler=batches, **how)
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
