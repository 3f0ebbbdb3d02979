"""What training asks of a data set, with an answer for those that have nothing of their own to say.

Anyone's data set can be one.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from utils.data.normalize import PercentileNormalizer


class EpochDataset(Dataset[tuple[Tensor, ...]]):
    """Items (image, mask), each (1, *space) float32, that may be others in each epoch.

    A subclass gives ``__len__``, the items of an epoch, and ``__getitem__``; all else it may leave.
    """

    normalizer: PercentileNormalizer
    """What has scaled the images; checkpoints tell it to prediction."""
    makes_batches = False
    """Whether it has batches of its own, changed at random already, which training takes from its
    ``make_loader``: see :meth:`utils.data.simulated.OnTheFly3DDataset.make_loader`."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose items are given from now on, in all worker processes."""

    def epoch_record(self) -> dict[str, float]:
        """Return what the latest epoch has measured, for ``logs.json``."""
        return {}

    def describe(self) -> Any:
        """Return, as plain JSON, all that decides the items; a run that goes on must have it alike.

        File names stand under ``file``: their folder may be another one then.
        """
        return {}
