"""Networks for images, applied to stacks plane by plane along z; tensors are (batch, 1, *space)."""

from __future__ import annotations

import torch
from torch import nn

from utils.errors import UserError


class PlaneByPlane(nn.Module):
    """Passes windows that are one plane deep through a network for images.

    ``forward`` takes (batch, 1, X, Y, 1) and returns logits of the same shape. Raises ValueError
    for deeper windows: the network would not see how planes hang together.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        """Return the prediction of each window's plane; of several stacks the last."""
        if windows.ndim != 5 or windows.shape[-1] != 1:
            raise UserError(
                f"windows must be one plane deep, (batch, 1, X, Y, 1), not {tuple(windows.shape)}"
            )
        logits = self.network(windows[..., 0])
        if isinstance(logits, (list, tuple)):
            logits = logits[-1]
        return logits[..., None]
