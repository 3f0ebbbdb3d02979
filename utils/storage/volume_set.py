"""All that decides the contents of a file of volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from utils.simulation.sheet import DEPTHS
from utils.simulation.streams import check_seed
from utils.simulation.volume import Config, WideConfig, preset_of
from utils.storage.layout import row_bytes


@dataclass(frozen=True)
class VolumeSet:
    """All that decides a file's contents: sample i is simulated with ``sample_rng(seed, i)``.

    Raises UserError for a seed that is none.
    """

    config: Config
    seed: int
    num_samples: int

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def to_dict(self) -> dict[str, Any]:
        """Return all parameters by name in plain JSON types."""
        return {**self.config.to_dict(), "seed": self.seed, "num_samples": self.num_samples}

    def differences(self, asked: VolumeSet) -> list[tuple[str, Any, Any]]:
        """Return (name, value here, value asked for) of each parameter that differs.

        Fields of a part are named as part.field; of different presets the names alone are told.
        """
        presets = preset_of(self.config), preset_of(asked.config)
        if presets[0] != presets[1]:
            return [("preset", *presets)]
        return differing(self.to_dict(), asked.to_dict())


def differing(old: Mapping, new: Mapping, part: str = "") -> list[tuple[str, Any, Any]]:
    """Return (name, old value, new value) of all entries that differ, None where one is missing."""
    found: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*old, *new]):
        values = old.get(name), new.get(name)
        if all(isinstance(value, dict) for value in values):
            found += differing(*values, f"{part}{name}.")
        elif values[0] != values[1]:
            found.append((part + name, *values))
    return found


def disk_space(volume_set: VolumeSet) -> int:
    """Return an upper estimate of a file's bytes.

    Images are stored as they are; labels were measured at 2 to 4 % of them (128 voxels an edge),
    twice that is allowed for. The frames of 400 columns take 64 KiB. Wide volumes are allowed more
    labels, and two sheets, each as large as a face of the volume and as curved as half a sphere.
    """
    config = volume_set.config
    row = 1.08 * row_bytes(config.shape) + (1 << 16)
    if isinstance(config, WideConfig):
        nodes = DEPTHS if config.table is None else config.table.nodes.shape[1]
        columns = 8 * (max(config.shape) / config.sheet.spacing[0] + 1) ** 2
        row += 0.08 * row_bytes(config.shape) + min(columns, 1 << 16) * (128 + 16 * nodes)
    return int(volume_set.num_samples * row) + (1 << 20)
