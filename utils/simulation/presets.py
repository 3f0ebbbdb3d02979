"""The presets by name, and mixtures of them from which each volume of a training draws its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.simulation.sheet import SheetConfig
from utils.simulation.stain import StainConfig
from utils.simulation.streams import Purpose, make_rng
from utils.simulation.volume import SimulatedVolume, VolumeConfig, sample_rng, simulate_volume
from utils.simulation.wide import WideConfig

Config = VolumeConfig | WideConfig
PRESETS: Mapping[str, type[Config]] = {"reference": VolumeConfig, "wide": WideConfig}
"""What ``--preset`` takes, and the configuration whose defaults it is."""

_TINY: Mapping[type[Config], Config] = {
    VolumeConfig: VolumeConfig((32, 32, 32), lattice_intervals=(4, 5), min_columns=5),
    WideConfig: WideConfig(
        (32, 32, 32),
        min_visibility=0,
        sheet=SheetConfig(min_columns=2),
        stain=StainConfig(clouds_probability=0.2),
    ),
}
_TINY_VOLUMES = {VolumeConfig: 1, WideConfig: 12}  # so many that each kernel is called


def preset(name: str, **fields: Any) -> Config:
    """Return the configuration of a preset, ``fields`` changed; UserError for another name."""
    if name not in PRESETS:
        raise UserError(f"preset {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name](**fields)


def preset_of(config: Config) -> str:
    """Return the name of a configuration's preset."""
    return next(name for name, kind in PRESETS.items() if isinstance(config, kind))


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """Return the configuration that ``to_dict`` of either preset has made plain."""
    return (WideConfig if "sheet" in values else VolumeConfig).from_dict(values)


def compile_kernels(*configs: Config) -> list[SimulatedVolume]:
    """Compile, or load, what volumes of the configurations' presets need: before a fork, once.

    Return small volumes, by which what comes after them can be compiled too.
    """
    kinds = {type(config): None for config in configs}
    return [
        simulate_volume(_TINY[kind], sample_rng(0, index))
        for kind in kinds
        for index in range(_TINY_VOLUMES[kind])
    ]


@dataclass(frozen=True)
class Mixture:
    """Configurations of volumes of one shape, and the share of the volumes that each makes.

    Raises UserError for shares that do not add up to 1, and shapes that differ.
    """

    parts: tuple[tuple[Config, float], ...]

    def __post_init__(self) -> None:
        shares = [share for _, share in self.parts]
        if not all(share > 0 for share in shares) or not np.isclose(sum(shares), 1.0):
            raise UserError(f"shares {shares}: must be above 0 and add up to 1")
        if len({config.shape for config, _ in self.parts}) != 1:
            raise UserError(f"shapes {[config.shape for config, _ in self.parts]}: must be equal")

    @property
    def configs(self) -> list[Config]:
        """The configurations."""
        return [config for config, _ in self.parts]

    def choose(self, seed: int, epoch: int, index: int) -> Config:
        """Return the configuration of a volume, drawn with the shares from its place alone."""
        if len(self.parts) == 1:
            return self.parts[0][0]
        draw = make_rng(Purpose.PRESET, seed, epoch, index).random()
        bounds = np.cumsum([share for _, share in self.parts])[:-1]
        return self.parts[int(np.searchsorted(bounds, draw, side="right"))][0]

    def to_dict(self) -> dict[str, Any] | list[dict[str, Any]]:
        """Return plain JSON types: the one configuration, or preset, share and fields of each."""
        if len(self.parts) == 1:
            return self.parts[0][0].to_dict()
        return [
            {"preset": preset_of(config), "share": share, **config.to_dict()}
            for config, share in self.parts
        ]
