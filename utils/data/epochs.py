"""What training asks of a data set, with an answer for those that have nothing of their own to say.

The class imports torch alone, so that anyone's data set can be one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class EpochDataset(Dataset[tuple[Tensor, ...]]):
    """Items (image, mask), each (1, *space) float32, that may be others in each epoch.

    A subclass gives ``__len__``, the items of an epoch, and ``__getitem__``; all else it may leave.
    """

    makes_batches = False
    """Whether training takes its batches, changed at random already, from :meth:`make_loader`."""

    def __len__(self) -> int:
        """Return the number of items in an epoch."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose items are given from now on, in all worker processes."""

    def make_loader(
        self,
        batch_size: int,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> DataLoader:
        """Return a loader of batches; training asks for it only where the set makes its own."""
        raise NotImplementedError

    def epoch_record(self) -> dict[str, float]:
        """Return what the latest epoch has measured, for ``logs.json``."""
        return {}

    def describe(self) -> Any:
        """Return, as plain JSON, all that decides the items; a run that goes on must have it alike.

        File names stand under ``file``: their folder may be another one then.
        """
        return {}
