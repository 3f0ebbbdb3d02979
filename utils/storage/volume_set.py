"""All that decides the contents of a file of volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from utils.simulation.streams import check_seed
from utils.simulation.volume import VolumeConfig
from utils.storage.layout import row_bytes


@dataclass(frozen=True)
class VolumeSet:
    """All that decides a file's contents: sample i is simulated with ``sample_rng(seed, i)``.

    Raises UserError for a seed that is none.
    """

    config: VolumeConfig
    seed: int
    num_samples: int

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return all parameters by name in plain JSON types."""
        return {**self.config.to_dict(), "seed": self.seed, "num_samples": self.num_samples}

    def differences(self, asked: VolumeSet) -> list[tuple[str, Any, Any]]:
        """Return (name, value here, value asked for) of each parameter that differs."""
        return differing(self.to_dict(), asked.to_dict())


def differing(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return (name, old value, new value) of all entries that differ, None where one is missing."""
    names = dict.fromkeys([*old, *new])
    return [(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def disk_space(volume_set: VolumeSet) -> int:
    """Return an upper estimate of a file's bytes.

    Images are stored as they are; labels were measured at 2 to 4 % of them (128 voxels an edge),
    twice that is allowed for. The frames of 400 columns take 64 KiB.
    """
    row = 1.08 * row_bytes(volume_set.config.shape) + (1 << 16)
    return int(volume_set.num_samples * row) + (1 << 20)
