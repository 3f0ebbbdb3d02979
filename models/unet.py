"""The U-Net of arXiv 1505.04597 for images and volumes; tensors are (batch, channels, *space).

Differences from the paper: convolutions are padded, so the output has the input's size; batch
normalisation follows each of them; blocks are residual on request. With a strided stem, which the
paper does not have, the whole U-Net works at a fraction of the resolution.
"""

from __future__ import annotations

import torch
from torch import nn

from models import layers


class UNetBody(nn.Module):
    """A U-Net without its head: features at full resolution.

    ``depth`` levels are joined by ``depth - 1`` poolings; channels double from ``start_channels``
    on the way down and halve on the way up, where each level's own features are concatenated.
    Every spatial axis of the input must be a multiple of :attr:`size_multiple`.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        depth: int,
        start_channels: int,
        conv_kernel_size: int,
        residual: bool,
    ) -> None:
        super().__init__()
        block = layers.ResidualBlock if residual else layers.ConvBlock
        widths = [start_channels * 2**level for level in range(depth)]
        self.size_multiple = 2 ** (depth - 1)
        self.encoder = nn.ModuleList(
            block(spatial_dims, inputs, outputs, conv_kernel_size)
            for inputs, outputs in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = layers.OPERATORS[spatial_dims].pool(2)
        self.ups = nn.ModuleList(
            layers.up(spatial_dims, 2 * width, width) for width in reversed(widths[:-1])
        )
        self.decoder = nn.ModuleList(
            block(spatial_dims, 2 * width, width, conv_kernel_size)
            for width in reversed(widths[:-1])
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, *space) to (batch, start_channels, *space)."""
        *levels, bottom = self.encoder
        skips = []
        for level in levels:
            x = level(x)
            skips.append(x)
            x = self.pool(x)
        x = bottom(x)
        for up, level in zip(self.ups, self.decoder, strict=True):
            x = level(torch.cat((skips.pop(), up(x)), dim=1))
        return x


class UNet(nn.Module):
    """A U-Net: :class:`UNetBody` and a 1x1 convolution to logits.

    With ``stem_stride`` s > 1 blocks of s voxels an edge enter as channels, and a last convolution
    of ``conv_kernel_size`` gives each block its s^dims logits (sub-pixel convolution, arXiv
    1609.05158): nothing of the input is lost, and a step costs about 1 / s^dims.

    Takes any spatial size: the input is padded inside to a multiple of
    ``stem_stride * 2 ** (depth - 1)`` by repeating its border, and the output cropped back. While
    training, the coarsest level needs more than one voxel in the whole batch, else batch
    normalisation has nothing to measure.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        in_channels: channels of the input.
        out_channels: channels of the logits.
        depth: levels, at least 1; there are ``depth - 1`` poolings.
        start_channels: channels at full resolution, doubled by each pooling.
        conv_kernel_size: odd edge of the convolution kernels.
        residual: residual blocks instead of plain ones.
        stem_stride: edge of the blocks of voxels that the network works on; 1 is full resolution.

    Raises:
        ValueError: for sizes that no network can have.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        depth: int = 4,
        start_channels: int = 4,
        conv_kernel_size: int = 3,
        residual: bool = False,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        sizes = (depth, start_channels, conv_kernel_size)
        counts = {"in_channels": in_channels, "out_channels": out_channels}
        layers.check_arguments(spatial_dims, *sizes, stem_stride, **counts)
        block = stem_stride**spatial_dims
        self.stem_stride = stem_stride
        self.body = UNetBody(spatial_dims, in_channels * block, *sizes, residual)
        self.size_multiple = stem_stride * self.body.size_multiple
        kernel = 1 if stem_stride == 1 else conv_kernel_size
        self.head = layers.conv(
            spatial_dims, start_channels, out_channels * block, kernel, bias=True
        )

    @property
    def encoder(self) -> nn.ModuleList:
        """The levels on the way down, the lowest one included."""
        return self.body.encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, *space) to logits (batch, out_channels, *space)."""
        padded = layers.pad_to_multiple(x, self.size_multiple)
        features = self.body(layers.space_to_depth(padded, self.stem_stride))
        logits = self.head(features)
        return layers.crop_to(layers.depth_to_space(logits, self.stem_stride), x.shape[2:])
