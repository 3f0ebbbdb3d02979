"""Convolutional building blocks written once for images and volumes.

``spatial_dims`` (2 or 3) picks a row of the operator table; everything else reads the same for
both. Tensors are (batch, channels, *space) float. A convolution that feeds a batch normalisation
has no bias, because the normalisation subtracts it again: it would be a parameter that trains
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional


class Operators(NamedTuple):
    """The dimension-dependent torch layers."""

    conv: type[nn.Conv2d] | type[nn.Conv3d]
    up: type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]
    norm: type[nn.BatchNorm2d] | type[nn.BatchNorm3d]
    pool: type[nn.MaxPool2d] | type[nn.MaxPool3d]


OPERATORS = {
    2: Operators(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.MaxPool2d),
    3: Operators(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.MaxPool3d),
}


def conv(
    spatial_dims: int, inputs: int, outputs: int, kernel: int, bias: bool = False
) -> nn.Module:
    """Return a convolution that keeps the spatial size (odd ``kernel``, zeros at the border)."""
    return OPERATORS[spatial_dims].conv(inputs, outputs, kernel, padding=kernel // 2, bias=bias)


def conv_norm_relu(spatial_dims: int, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Return convolution, batch normalisation and ReLU in a row."""
    return nn.Sequential(
        conv(spatial_dims, inputs, outputs, kernel),
        OPERATORS[spatial_dims].norm(outputs),
        nn.ReLU(inplace=True),
    )


def space_to_depth(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Return (batch, channels * factor^dims, *space / factor): each block of voxels as channels.

    Every spatial axis must be a multiple of ``factor``; :func:`depth_to_space` is the inverse.
    After arXiv 1609.05158 (sub-pixel convolution), for images and volumes alike.
    """
    if factor == 1:
        return x
    batch, channels, *space = x.shape
    blocks = x.reshape(batch, channels, *(n for size in space for n in (size // factor, factor)))
    coarse, fine = range(2, 2 + 2 * len(space), 2), range(3, 3 + 2 * len(space), 2)
    blocks = blocks.permute(0, 1, *fine, *coarse)
    return blocks.reshape(batch, -1, *(size // factor for size in space))


def depth_to_space(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Return (batch, channels / factor^dims, *space * factor): :func:`space_to_depth` undone."""
    if factor == 1:
        return x
    batch, channels, *space = x.shape
    dims = len(space)
    blocks = x.reshape(batch, channels // factor**dims, *[factor] * dims, *space)
    pairs = [axis for i in range(dims) for axis in (2 + dims + i, 2 + i)]
    return blocks.permute(0, 1, *pairs).reshape(batch, -1, *(size * factor for size in space))


class ConvBlock(nn.Module):
    """Two times convolution, batch normalisation, ReLU: one level of a U-Net."""

    def __init__(self, spatial_dims: int, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm_relu(spatial_dims, inputs, outputs, kernel),
            conv_norm_relu(spatial_dims, outputs, outputs, kernel),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, *space) to (batch, outputs, *space)."""
        return self.layers(x)


class ResidualBlock(nn.Module):
    """The two convolutions of a :class:`ConvBlock` added to their input before the last ReLU.

    After arXiv 1512.03385; the input passes a 1x1 projection where the channels differ, and is
    taken as it is where they agree.
    """

    def __init__(self, spatial_dims: int, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_norm_relu(spatial_dims, inputs, outputs, kernel),
            conv(spatial_dims, outputs, outputs, kernel),
            OPERATORS[spatial_dims].norm(outputs),
        )
        same = inputs == outputs
        self.shortcut = nn.Identity() if same else conv(spatial_dims, inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, inputs, *space) to (batch, outputs, *space)."""
        return torch.relu(self.layers(x) + self.shortcut(x))


def pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Return ``x`` with every spatial axis lengthened at its end to a multiple of ``multiple``.

    The border voxel is repeated: unlike zeros that draws no dark edge into the image, and unlike a
    reflection it works for an axis of any length. Only ends grow, so that the pooling grid stays
    anchored at voxel 0 and :func:`crop_to` undoes it.
    """
    growth = [-size % multiple for size in x.shape[2:]]
    if not any(growth):
        return x
    return functional.pad(x, [n for g in reversed(growth) for n in (0, g)], mode="replicate")


def crop_to(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return the leading ``size`` voxels of each spatial axis."""
    for axis, length in enumerate(size, start=2):
        x = x.narrow(axis, 0, length)
    return x
