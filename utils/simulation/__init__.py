"""Simulation of optic lobe data: numpy, scipy and numba only; no torch, no files, no printing."""

from utils.simulation.geometry import GeometryError
from utils.simulation.volume import (
    SimulatedVolume,
    VolumeConfig,
    VolumeParameters,
    sample_rng,
    simulate_volume,
)

__all__ = [
    "GeometryError",
    "SimulatedVolume",
    "VolumeConfig",
    "VolumeParameters",
    "sample_rng",
    "simulate_volume",
]
