"""An exponential moving average of a network's weights, which validation and prediction use."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return a copy of ``model`` that follows its weights and buffers; None for a decay of 0.

    Call ``update_parameters(model)`` after each step. The n-th update keeps
    ``min(decay, (1 + n) / (10 + n))`` of the average, so that the random weights of the beginning
    are soon forgotten; counters (integer buffers) are copied.
    """
    if not decay:
        return None

    @torch.no_grad()
    def follow(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        """Move averaged tensors, all of one type, towards the current ones."""
        n = int(average.n_averaged)  # on the host; for ``count`` it would wait for the device
        share = 1 - min(decay, (1 + n) / (10 + n))
        for old, new in zip(averaged, current, strict=True):
            if old.is_floating_point():
                old.lerp_(new, share)
            else:
                old.copy_(new)

    average = AveragedModel(model, multi_avg_fn=follow, use_buffers=True)
    return average
