"""What training asks of a data set, with an answer for those that have nothing of their own to say.

Anyone's data set can be one. Indices are checked here, so that all say the same of them.
"""

import operator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.data.normalize import PercentileNormalizer
from utils.simulation.streams import Purpose, make_rng


class EpochDataset(Dataset[tuple[Tensor, ...]]):
    """Items (image, mask), each (1, *space) float32, that may be others in each epoch.

    A subclass gives ``__len__``, the items of an epoch, and ``__getitem__``; all else it may leave.
    """

    normalizer = PercentileNormalizer()  # that has scaled the images; checkpoints tell prediction
    makes_batches = False
    """Whether it has batches of its own, changed at random already, which training takes from its
    ``make_loader``: see :meth:`utils.data.simulated.OnTheFly3DDataset.make_loader`."""
    parts: tuple[int, ...] = ()
    """Where each batch holds several kinds of patches, one after the other, how many of each."""

    def __init__(self) -> None:
        # In shared memory, so that workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose items are given, 0 until another one is chosen."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose items are given from now on, in all worker processes."""
        self._epoch.fill_(epoch)

    def epoch_record(self) -> dict[str, float]:
        """Return what the latest epoch has measured, for ``logs.json``."""
        return {}

    def describe(self) -> Any:
        """Return, as plain JSON, all that decides the items; a run that goes on must have it alike.

        File names stand under ``file``: their folder may be another one then. Under ``version``
        stands the version of the simulation, which is not compared: older records lack it.
        """
        return {}


def own_loader(data: Dataset, num_workers: int = 0, **options: Any) -> DataLoader:
    """Return a loader that outlives epochs, and draws nothing from torch's global generator."""
    kept = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    return DataLoader(data, generator=torch.Generator(), **kept, **options)


def item_index(index: Any, length: int) -> int:
    """Return an int of 0..length - 1, from the end if negative; or raise IndexError, TypeError."""
    try:
        number = operator.index(index)
    except TypeError:
        advice = "torch.utils.data.Subset(dataset, range(2)) is a data set of the first two"
        raise TypeError(f"data sets take whole numbers, not {index!r}; {advice}") from None
    if not -length <= number < length:
        raise IndexError(f"item {number} is outside {-length}..{length - 1}")
    return number % length


def in_turn(seed: int, place: int, samples: int) -> int:
    """Return the sample at a place of seeded random orders of 0..samples - 1, one after another."""
    order, within = divmod(place, samples)
    return int(make_rng(Purpose.SAMPLE_ORDER, seed, order).permutation(samples)[within])
