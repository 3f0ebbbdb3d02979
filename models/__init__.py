"""Segmentation networks for images and volumes, and the record from which one is built.

Networks map (batch, channels, *space) to logits of the same spatial size; torch is all they need.
"""

from torch import nn

from models.configuration import ARCHITECTURES, ModelConfig
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


def build_model(config: ModelConfig) -> nn.Module:
    """Return the network that ``config`` describes, freshly initialised by torch's generator.

    A ``unet`` returns logits, a ``stacked_unet`` the list of its stacks' logits, the last of them
    the prediction.
    """
    return UNet(config) if config.arch == "unet" else StackedUNet(config)


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights that training changes."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
