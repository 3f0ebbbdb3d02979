"""Stacked hourglass network after arXiv 1603.06937, with U-Nets as its hourglasses.

Tensors are (batch, channels, *space); score maps are logits.
"""

from __future__ import annotations

import torch
from torch import nn

from models import layers
from models.configuration import ModelConfig
from models.unet import UNetBody


class Hourglass(nn.Module):
    """One hourglass: features ``y`` and the score map read off them.

    ``y = ReLU(norm(1x1 conv(body(x))))`` and ``score = 1x1 conv(y)``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dims, channels = config.spatial_dims, config.start_channels
        self.body = UNetBody(config, channels)
        self.features = layers.conv_norm_relu(dims, channels, channels, 1)
        scores = config.out_channels * config.block
        self.score = layers.conv(dims, channels, scores, 1, bias=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (batch, channels, *space) to features of that shape and out_channels score maps."""
        y = self.features(self.body(x))
        return y, self.score(y)


class ReEntry(nn.Module):
    """The identity path between stacks: ``x + 1x1 conv(y) + 1x1 conv(score)``.

    Without biases: the next body normalises a constant away.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dims, channels = config.spatial_dims, config.start_channels
        self.features = layers.conv(dims, channels, channels, 1)
        self.score = layers.conv(dims, config.out_channels * config.block, channels, 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor, score: torch.Tensor) -> torch.Tensor:
        """Return the next stack's input, of the shape of ``x``."""
        return x + self.features(y) + self.score(score)


class StackedUNet(nn.Module):
    """Several U-Nets in a row, each with a score map of its own for intermediate supervision.

    A stem lifts the input to ``start_channels``; each :class:`Hourglass` gives features and logits,
    and if another one follows, both re-enter (:class:`ReEntry`). Weights are not shared. The loss
    is meant to be summed over the returned logits; the last ones are the prediction.

    Differences from the paper: its hourglasses add skip features through residual modules at a
    constant width; these bodies are U-Nets, which concatenate them and double the channels
    with depth. Its stem quarters the resolution (7x7 stride 2, max pooling), where score maps stay;
    this stem is one convolution, at full resolution unless ``stem_stride`` is larger than 1 (blocks
    of that edge then enter as channels), and score maps always have the size of the input.

    Takes any spatial size, padded and cropped as in :class:`models.unet.UNet`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.stem_stride = config.stem_stride
        self.size_multiple = config.stem_stride * 2 ** (config.depth - 1)
        channels, kernel = config.start_channels, config.conv_kernel_size
        self.stem = layers.conv_norm_relu(
            config.spatial_dims, config.in_channels * config.block, channels, kernel
        )
        self.stacks = nn.ModuleList(Hourglass(config) for _ in range(config.num_stacks))
        self.re_entries = nn.ModuleList(ReEntry(config) for _ in range(config.num_stacks - 1))

    @property
    def encoder(self) -> nn.ModuleList:
        """The stem, and of each stack the levels on the way down, the lowest one included."""
        bodies = (module for module in self.stacks.modules() if isinstance(module, UNetBody))
        return nn.ModuleList([self.stem, *(body.encoder for body in bodies)])

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map (batch, in_channels, *space) to one map of logits a stack."""
        size, stride = x.shape[2:], self.stem_stride
        padded = layers.pad_to_multiple(x, self.size_multiple)
        x = self.stem(layers.space_to_depth(padded, stride))
        *earlier, last = self.stacks
        scores = []
        for stack, re_entry in zip(earlier, self.re_entries, strict=True):
            y, score = stack(x)
            scores.append(score)
            x = re_entry(x, y, score)
        scores.append(last(x)[1])
        maps = [layers.depth_to_space(score, stride) for score in scores]
        return [layers.crop_to(logits, size) for logits in maps]
