"""Simulation of optic lobe data: numpy, scipy and numba only; no torch, no files, no printing."""

from utils.simulation.geometry import GeometryError
from utils.simulation.presets import Mixture, config_from_dict, preset
from utils.simulation.volume import (
    SimulatedVolume,
    VolumeConfig,
    VolumeParameters,
    WideVolume,
    sample_rng,
    simulate_volume,
)
from utils.simulation.wide import WideConfig
