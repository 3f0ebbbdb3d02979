"""Segmentation networks for images and volumes, and the record from which one is built.

Networks map (batch, channels, *space) to logits of the same spatial size; torch is all they need.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from models.layers import check_arguments
from models.stacked_hourglass import StackedUNet
from models.unet import UNet, UNetBody

__all__ = [
    "ARCHITECTURES",
    "ModelConfig",
    "StackedUNet",
    "UNet",
    "UNetBody",
    "build_model",
    "count_parameters",
]

ARCHITECTURES = ("unet", "stacked_unet")


@dataclass(frozen=True)
class ModelConfig:
    """All that it takes to build a network again; a checkpoint stores it beside the weights.

    Raises ValueError, in one line that quotes the value, for sizes that no network can have.
    """

    arch: str = "unet"
    """One of :data:`ARCHITECTURES`."""
    spatial_dims: int = 3
    """2 for images, 3 for volumes."""
    in_channels: int = 1
    out_channels: int = 1
    depth: int = 4
    """Levels of the U-Net; there are ``depth - 1`` poolings."""
    start_channels: int = 4
    """Channels at full resolution, doubled by each pooling."""
    num_stacks: int = 1
    """U-Nets in a row; ``stacked_unet`` alone reads it."""
    conv_kernel_size: int = 3
    """Odd edge of the convolution kernels."""
    residual: bool = False
    """Residual blocks instead of plain ones."""
    stem_stride: int = 1
    """Edge of the blocks of voxels that the network works on; 1 is full resolution."""

    def __post_init__(self) -> None:
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"arch must be one of {', '.join(ARCHITECTURES)}, not {self.arch!r}")
        sizes = self.to_dict()
        del sizes["arch"], sizes["residual"]
        check_arguments(**sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; :meth:`from_dict` is the inverse."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Build a configuration from :meth:`to_dict`'s result; ValueError for an unknown name."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown entries in the model configuration: {', '.join(unknown)}")
        return cls(**values)


def build_model(config: ModelConfig) -> nn.Module:
    """Return the network that ``config`` describes, freshly initialised by torch's generator.

    A ``unet`` returns logits, a ``stacked_unet`` the list of its stacks' logits, the last of them
    the prediction.
    """
    arguments = config.to_dict()
    if arguments.pop("arch") == "stacked_unet":
        return StackedUNet(**arguments)
    del arguments["num_stacks"]
    return UNet(**arguments)


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
