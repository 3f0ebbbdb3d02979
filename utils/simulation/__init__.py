"""Simulation of optic lobe data: numpy, scipy and numba only; no torch, no files, no printing."""

from utils.simulation.volume import SimulatedVolume, VolumeConfig, VolumeParameters, sample_rng

__all__ = ["SimulatedVolume", "VolumeConfig", "VolumeParameters", "sample_rng"]
