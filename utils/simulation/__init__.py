"""Simulation of optic lobe data: numpy, scipy and numba only; no torch, no files, no printing."""

from utils.simulation.geometry import GeometryError
from utils.simulation.volume import (
    Mixture,
    SimulatedVolume,
    VolumeConfig,
    VolumeParameters,
    WideConfig,
    WideVolume,
    config_from_dict,
    preset,
    sample_rng,
    simulate_volume,
)
