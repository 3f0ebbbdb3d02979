"""The U-Net of arXiv 1505.04597 for images and volumes; tensors are (batch, channels, *space).

Differences from the paper: convolutions are padded, so the output has the input's size; batch
normalisation follows each of them; blocks are residual on request. With a strided stem, which the
paper does not have, the whole U-Net works at a fraction of the resolution.
"""

from __future__ import annotations

import torch
from torch import nn

from models import layers
from models.configuration import ModelConfig


class UNetBody(nn.Module):
    """A U-Net without its head: features at full resolution.

    ``depth`` levels are joined by ``depth - 1`` poolings; channels double from ``start_channels``
    on the way down and halve on the way up, where each level's own features are concatenated.
    Every spatial axis of the input must be a multiple of ``2 ** (depth - 1)``.
    """

    def __init__(self, config: ModelConfig, in_channels: int) -> None:
        super().__init__()
        dims, kernel = config.spatial_dims, config.conv_kernel_size
        block = layers.ResidualBlock if config.residual else layers.ConvBlock
        widths = [config.start_channels * 2**level for level in range(config.depth)]
        self.encoder = nn.ModuleList(
            block(dims, inputs, outputs, kernel)
            for inputs, outputs in zip([in_channels, *widths], widths, strict=False)
        )
        operators, rising = layers.OPERATORS[dims], widths[-2::-1]
        self.pool = operators.pool(2)
        # Kernel and stride are equal, so each voxel is written exactly once and no chequerboard of
        # overlapping kernels arises. No bias: the block that follows normalises it away.
        self.ups = nn.ModuleList(operators.up(2 * n, n, 2, stride=2, bias=False) for n in rising)
        self.decoder = nn.ModuleList(block(dims, 2 * n, n, kernel) for n in rising)

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
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stem_stride = config.stem_stride
        self.size_multiple = config.stem_stride * 2 ** (config.depth - 1)
        self.body = UNetBody(config, config.in_channels * config.block)
        outputs = config.out_channels * config.block
        kernel = 1 if config.stem_stride == 1 else config.conv_kernel_size
        self.head = layers.conv(
            config.spatial_dims, config.start_channels, outputs, kernel, bias=True
        )

    @property
    def encoder(self) -> nn.ModuleList:
        """The levels on the way down, the lowest one included."""
        return self.body.encoder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, *space) to logits (batch, out_channels, *space)."""
        stride = self.stem_stride
        padded = layers.pad_to_multiple(x, self.size_multiple)
        logits = self.head(self.body(layers.space_to_depth(padded, stride)))
        return layers.crop_to(layers.depth_to_space(logits, stride), x.shape[2:])
