"""Sizes of networks and batches, as benchmarks take them from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models import ModelConfig

SIZE_FORMAT = "DEPTH,CHANNELS,BATCH[,STEM_STRIDE[,STACKS]]"


@dataclass(frozen=True)
class Size:
    """A U-Net, or several in a row, and its batch."""

    depth: int
    channels: int
    batch: int
    stem_stride: int = 1
    stacks: int = 1

    @classmethod
    def read(cls, text: str) -> Size:
        """Read :data:`SIZE_FORMAT`; ValueError for anything else."""
        numbers = [int(part) for part in text.split(",")]
        if not 3 <= len(numbers) <= 5 or min(numbers) < 1:
            raise ValueError(f"{text}: three to five numbers of at least 1 are needed")
        return cls(*numbers)

    def __str__(self) -> str:
        stem = f", stem stride {self.stem_stride}" if self.stem_stride > 1 else ""
        stacks = f", {self.stacks} stacks" if self.stacks > 1 else ""
        return f"depth {self.depth}, {self.channels} channels{stem}{stacks}, batch {self.batch}"

    @property
    def plain(self) -> bool:
        """Whether it is an ordinary U-Net, which the peers have too."""
        return self.stem_stride == self.stacks == 1

    def model_config(self) -> ModelConfig:
        """Return the network's configuration."""
        from models import ModelConfig

        return ModelConfig(
            arch="stacked_unet" if self.stacks > 1 else "unet",
            depth=self.depth,
            start_channels=self.channels,
            stem_stride=self.stem_stride,
            num_stacks=self.stacks,
        )
