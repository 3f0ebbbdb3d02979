"""The record from which a segmentation network is built."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

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
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, not {self.spatial_dims!r}")
        sizes = self.to_dict()
        del sizes["arch"], sizes["spatial_dims"], sizes["residual"]
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
        if self.conv_kernel_size % 2 == 0:
            raise ValueError(
                f"conv_kernel_size must be odd, so that the output keeps the input's size, "
                f"not {self.conv_kernel_size}"
            )
        bits = math.log2(self.start_channels) + self.depth - 1
        bits += self.spatial_dims * math.log2(self.stem_stride)
        if 2 * bits + self.spatial_dims * math.log2(self.conv_kernel_size) > 60:
            widening = ("depth", "start_channels", "conv_kernel_size", "stem_stride")
            raise ValueError(
                "the widest convolution would have more than 2^60 weights: "
                + ", ".join(f"{name} {sizes[name]}" for name in widening)
            )

    @property
    def block(self) -> int:
        """Voxels of a block of the strided stem, which enter as channels."""
        return self.stem_stride**self.spatial_dims

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
